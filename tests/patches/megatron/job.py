"""A job: Megatron's parser, checks, config, GPTModel and schedules, mock data, several ranks over Gloo.

Started by torchrun, `-m recoup.megatron` or not, with Megatron's own options. Where the installation has no
megatron.training (wheels), options go to the config directly. Each rank prints a line of JSON: its stage, the
losses (last stage), which layers recompute their MLP, and the bytes that a microbatch's forward leaves.
JOB_MODEL=hybrid: HybridModel (MambaModel before it) of as many MLPs, in place of GPTModel.
"""
import argparse
import json
import os
import statistics
import sys
import types

import torch
import torch.distributed as dist
import torch.utils.cpp_extension
from torch.overrides import TorchFunctionMode


def _no_compiler(*_args, **_kwargs):
    raise RuntimeError("no CUDA extensions here")


class OnCpu(TorchFunctionMode):
    """What is made on "cuda" is made on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


torch.cuda.current_device = lambda: "cpu"
torch.cuda.synchronize = lambda *_a: None
torch.cuda.get_device_properties = lambda *_a: types.SimpleNamespace(major=10, minor=0)
torch.cuda.manual_seed = torch.manual_seed
torch.cuda.get_rng_state = lambda *_a: torch.get_rng_state()
torch.Tensor.cuda = lambda self, *_a, **_k: self
torch.utils.cpp_extension.load_inline = _no_compiler

from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel import random  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402

random._get_cuda_rng_state = lambda *_a, **_k: torch.get_rng_state()
random._set_cuda_rng_state = lambda state, *_a, **_k: torch.set_rng_state(state)

SEQUENCE, BATCH, MICROBATCHES, VOCABULARY = 16, 2, 2, 64
HYBRID = os.environ.get("JOB_MODEL") == "hybrid"
LAYERS = 8 if HYBRID else 4
OPTIONS = ["--num-layers", str(LAYERS), "--hidden-size", "16", "--num-attention-heads", "2", "--ffn-hidden-size", "64",
           "--seq-length", str(SEQUENCE), "--max-position-embeddings", str(SEQUENCE),
           "--micro-batch-size", str(BATCH), "--global-batch-size", str(BATCH * MICROBATCHES),
           "--disable-bias-linear", "--no-bias-dropout-fusion", "--no-bias-gelu-fusion",
           "--no-masked-softmax-fusion", "--use-cpu-initialization", "--no-gradient-accumulation-fusion",
           "--distributed-backend", "gloo", "--transformer-impl", "local", "--no-persist-layer-norm",
           "--train-iters", "3", "--lr", "0.1", "--vocab-size", str(VOCABULARY), "--no-async-tensor-model-parallel-allreduce",
           "--attention-backend", "unfused", "--eval-iters", "0", "--tokenizer-type", "NullTokenizer"]
ALWAYS = dict(use_cpu_initialization=True, bias_dropout_fusion=False, bias_activation_fusion=False,
              masked_softmax_fusion=False, add_bias_linear=False, pipeline_dtype=torch.float32,
              gradient_accumulation_fusion=False)


def config_by_megatrons_parser():
    from megatron.training import arguments

    sys.argv += OPTIONS
    args = arguments.parse_args()
    validated = arguments.validate_args(args, {})
    build = arguments.core_transformer_config_from_args
    config = build(validated or args)
    return config


def config_without_megatrons_parser():
    parser = argparse.ArgumentParser()
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "recompute_mlp_num_layers"):
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    parser.add_argument("--recompute-granularity")
    parser.add_argument("--recompute-layer-scope")
    parser.add_argument("--recompute-modules", nargs="*")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    return TransformerConfig(num_layers=LAYERS, hidden_size=16, num_attention_heads=2, ffn_hidden_size=64,
                             hidden_dropout=0.1, attention_dropout=0.1, **ALWAYS, **given)


def mock_data():
    generator = torch.Generator().manual_seed(3)
    while True:
        tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator)
        yield tokens[:, :-1], tokens[:, 1:]


def main():
    try:
        import megatron.training  # noqa: F401
        has_parser = True
    except ImportError:
        has_parser = False
    config = config_by_megatrons_parser() if has_parser else config_without_megatrons_parser()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(config.tensor_model_parallel_size,
                                             config.pipeline_model_parallel_size)
    random.model_parallel_cuda_manual_seed(7)
    torch.manual_seed(0)
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    options = dict(vocab_size=VOCABULARY, max_sequence_length=SEQUENCE, pre_process=first, post_process=last,
                   share_embeddings_and_output_weights=False)
    if HYBRID:
        from hybrid_parts import build

        model = build(config, **options)
    else:
        model = GPTModel(config, get_gpt_layer_local_spec(), **options)
    left = []

    def forward_step(data, model):
        tokens, labels = next(data)
        positions = torch.arange(SEQUENCE).expand(BATCH, SEQUENCE)
        mask = torch.triu(torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool), 1)
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            out = model(tokens, positions, mask, labels=labels)
        # Now and then a thread of Gloo's frees a few bytes a little later: what most microbatches leave counts.
        left.append(sum(event.self_cpu_memory_usage for event in profile.function_events))

        def loss(out):
            mean = out.float().mean()
            return mean, {"loss": mean.item()}
        return out, loss

    data, losses = mock_data(), []
    step = get_forward_backward_func()
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = None
        reported = step(forward_step_func=forward_step, data_iterator=data, model=[model],
                        num_microbatches=MICROBATCHES, seq_length=SEQUENCE, micro_batch_size=BATCH,
                        forward_only=False)
        losses += [entry["loss"] for entry in reported]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    print(json.dumps({
        "stage": parallel_state.get_pipeline_model_parallel_rank(), "losses": losses, "left": statistics.mode(left),
        "mlp": {layer.layer_number: layer.recompute_mlp for layer in model.decoder.layers
                if any(True for _ in layer.mlp.parameters())},
        "parser": has_parser, "rank": dist.get_rank()}), flush=True)
    dist.barrier()
    os._exit(0)


with OnCpu():
    main()
