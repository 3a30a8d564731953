"""`recoup estimate` beside Megatron-LM's own estimate (report_theoretical_memory), by hand:

    tests/models/theoretical_memory.py BUILD/recoup MEGATRON/megatron/training/theoretical_memory_usage.py

Five configurations on their first pipeline stage, weights and states, and activations with sequence parallelism
and a fused attention. Each difference is a named term that is computed from the numbers of the model; what is left
after all of them must be below 0.1 %.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types

COMMON = "--bf16 --sequence-parallel --transformer-impl transformer_engine --data-parallel-size {data}"
LLAMA = ("--swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope --hidden-dropout 0 "
         "--attention-dropout 0 --untie-embeddings-and-output-weights --group-query-attention")
CONFIGURATIONS = {
    "22B": (dict(layers=48, hidden=6144, heads=64, groups=64, ffn=24576, vocabulary=51200, sequence=2048, batch=4,
                 tensor=8, pipeline=1, data=1, microbatches=1), "--position-embedding-type rope"),
    "175B": (dict(layers=96, hidden=12288, heads=96, groups=96, ffn=49152, vocabulary=51200, sequence=2048, batch=1,
                  tensor=8, pipeline=8, data=1, microbatches=64), "--position-embedding-type rope"),
    "Llama-3 8B": (dict(layers=32, hidden=4096, heads=32, groups=8, ffn=14336, vocabulary=128256, sequence=8192,
                        batch=1, tensor=2, pipeline=1, data=4, microbatches=16), LLAMA),
    "Llama-3 70B": (dict(layers=80, hidden=8192, heads=64, groups=8, ffn=28672, vocabulary=128256, sequence=8192,
                         batch=1, tensor=8, pipeline=4, data=4, microbatches=32, sharded=True), LLAMA),
    "Mixtral 8x7B": (dict(layers=32, hidden=4096, heads=32, groups=8, ffn=14336, vocabulary=32000, sequence=4096,
                          batch=1, tensor=2, pipeline=4, data=8, microbatches=32, sharded=True, experts=8, chosen=2,
                          expert_parallel=8), LLAMA + " --num-experts 8 --moe-router-topk 2"),
}


def megatrons(path):
    """The module, without the rest of Megatron-LM."""
    package = types.ModuleType("megatrons")
    package.__path__ = [os.path.dirname(path)]
    utils = types.ModuleType("megatrons.utils")
    utils.is_hybrid_model = lambda args: False
    utils.print_rank_0 = print
    sys.modules.update({"megatrons": package, "megatrons.utils": utils})
    spec = importlib.util.spec_from_file_location("megatrons.theory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(module, c, gated):
    args = types.SimpleNamespace(
        kv_channels=c["hidden"] // c["heads"], num_attention_heads=c["heads"], hidden_size=c["hidden"],
        group_query_attention=c["groups"] != c["heads"], num_query_groups=c["groups"], num_experts=c.get("experts"),
        swiglu=gated, moe_shared_expert_intermediate_size=None, moe_layer_freq=1, num_layers=c["layers"],
        moe_ffn_hidden_size=c["ffn"], mtp_num_layers=None, normalization="RMSNorm" if gated else "LayerNorm",
        multi_latent_attention=False, padded_vocab_size=c["vocabulary"], untie_embeddings_and_output_weights=gated,
        ffn_hidden_size=c["ffn"], moe_latent_size=None, moe_router_topk=c.get("chosen", 2), add_bias_linear=not gated,
        expert_tensor_parallel_size=c["tensor"], expert_model_parallel_size=c.get("expert_parallel", 1),
        pipeline_model_parallel_size=c["pipeline"], tensor_model_parallel_size=c["tensor"],
        world_size=c["data"] * c["tensor"] * c["pipeline"], data_parallel_size=c["data"],
        use_distributed_optimizer=c.get("sharded", False), seq_length=c["sequence"], micro_batch_size=c["batch"],
        virtual_pipeline_model_parallel_size=None)
    return (module.compute_weight_and_optimizer_memory(args),
            module.compute_activation_memory(args, c["microbatches"]))


def ours(recoup, c, flags):
    arguments = {"num-layers": "layers", "hidden-size": "hidden", "num-attention-heads": "heads",
                 "num-query-groups": "groups", "ffn-hidden-size": "ffn", "padded-vocab-size": "vocabulary",
                 "seq-length": "sequence", "micro-batch-size": "batch", "tensor-model-parallel-size": "tensor",
                 "pipeline-model-parallel-size": "pipeline"}
    line = " ".join(f"--{flag} {c[key]}" for flag, key in arguments.items())
    line += f" --global-batch-size {c['batch'] * c['data'] * c['microbatches']} {flags} " + COMMON.format(**c)
    line += " --use-distributed-optimizer" if c.get("sharded") else ""
    line += f" --expert-model-parallel-size {c['expert_parallel']}" if "expert_parallel" in c else ""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(line + "\n")
        file.flush()
        done = subprocess.run([recoup, "estimate", "--json", "--model", file.name], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["stages"][0]


def weight_terms(c, gated):
    """What recoup counts and Megatron's estimate does not, in bytes."""
    h, f, t, per = c["hidden"], c["ffn"], c["tensor"], c["layers"] / c["pipeline"]
    each = 6 + 12 / c["data"] if c.get("sharded") else 18
    norm = h * (1 if gated else 2)
    if not gated:
        yield "biases of the GEMMs", per * (3 * h / t + f / t + 2 * h) * each
    if c["pipeline"] > 1:
        yield "the final norm: on the last stage, not a share of it on each", -norm / c["pipeline"] * each


def activation_terms(c, gated):
    """The same for activations on the first stage with everything in flight."""
    h, f, t = c["hidden"], c["ffn"], c["tensor"]
    tokens = c["sequence"] * c["batch"]
    in_flight = min(c["pipeline"], c["microbatches"])
    layers = c["layers"] / c["pipeline"] * in_flight
    kv = h * c["groups"] // c["heads"]
    yield "log-sum-exp of the scores", layers * tokens * 4 * c["heads"] / t
    if kv != h:
        yield "grouped heads: smaller keys and values", -layers * tokens * 4 * (h - kv) / t
    if gated:
        yield "no dropout: no masks", -layers * tokens * 2 * h / t
    if gated and "experts" not in c:
        yield "gated MLP: three inner tensors, not two", layers * tokens * 2 * f / t
    if "experts" in c:
        k = c["chosen"]
        yield "experts: k x 3 inner tensors, not 2", layers * tokens * (k * 6 - 4) * f / t
        yield "their inputs and results, k rows a token", layers * tokens * 4 * k * h / t
        yield "the router's tensors", layers * tokens * (4 * c["experts"] + k * (4 * 8 + 2 * 4) + 4) / t
    yield "token numbers of the embedding", -8 * tokens * in_flight / t
    yield "the embedding's dropout mask", -tokens * h * in_flight / t


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recoup")
    parser.add_argument("theory")
    options = parser.parse_args()
    module, worst = megatrons(options.theory), 0
    for name, (c, flags) in CONFIGURATIONS.items():
        gated = "--swiglu" in flags
        stage = ours(options.recoup, c, flags)
        in_flight = stage["in_flight"]
        for what, their, our, terms in zip(
                ("weights and states", "activations"), theirs(module, c, gated),
                (stage["weight_bytes"] + stage["gradient_bytes"] + stage["optimizer_bytes"],
                 stage["activation_bytes"] * in_flight + stage["head_bytes"]),
                (weight_terms(c, gated), activation_terms(c, gated))):
            terms = [(text, size) for text, size in terms if size]
            rest = our - their - sum(size for _, size in terms)
            worst = max(worst, abs(rest) / their)
            print(f"{name}, {what}: Megatron {their / 2**30:.3f} GiB, recoup {our / 2**30:.3f} GiB")
            for text, size in terms:
                print(f"    {size / 2**30:+10.4f}  {text}")
            print(f"    {rest / 2**30:+10.4f}  not explained ({100 * rest / their:+.4f} %)")
    if worst > 0.001:
        sys.exit(f"a difference of {100 * worst:.3f} % is not explained")


if __name__ == "__main__":
    main()
