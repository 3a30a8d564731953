"""Megatron-LM on a GPU, unpatched, started by `-m recoup.megatron`: GPTModel with dropout from Megatron's RNG tracker,
dense and MoE, and an MLP with dropout under make_graphed_callables; gradients equal to the bit.

RECOUP_MEGATRON names the folder that `megatron` is in, a wheel's or a checkout's; without it, the one of the pack
is taken. Where it is a checkout, pretrain_gpt.py itself trains for 5 iterations on mock data, with recoup and
without. On a CPU, Megatron's calls of CUDA are answered by tests/patches/megatron/cpu_megatron.py.
"""
import json
import os
import re
import subprocess
import sys

PACK = "build-gpu-pack/megatron"
SELECTIVE = ["--recompute-granularity", "selective", "--recompute-modules", "mlp"]
PRETRAIN = ["--num-layers", "4", "--hidden-size", "1024", "--num-attention-heads", "8", "--seq-length", "1024",
            "--max-position-embeddings", "1024", "--micro-batch-size", "2", "--global-batch-size", "4", "--train-iters",
            "5", "--lr", "1e-4", "--bf16", "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "1024",
            "--transformer-impl", "local", "--no-gradient-accumulation-fusion", "--no-masked-softmax-fusion",
            "--no-persist-layer-norm", "--disable-bias-linear", "--log-interval", "1", "--eval-iters", "0",
            "--attention-backend", "unfused", "--no-save-optim", "--no-save-rng"]


def folder_of_megatron(root):
    from run import Skip

    given = os.environ.get("RECOUP_MEGATRON")
    for folder in [given] if given else [os.path.join(root, PACK)]:
        if os.path.isdir(os.path.join(folder, "megatron", "core")):
            return os.path.abspath(folder)
    raise Skip(f"no Megatron-LM: RECOUP_MEGATRON={given or ''} names none" if given else
               f"no Megatron-LM: RECOUP_MEGATRON names none, and {PACK} is not there")


def run(context):
    from run import ROOT, check

    tree = folder_of_megatron(ROOT)
    context.torch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [tree, os.path.join(ROOT, "plugin", "python"), os.path.join(ROOT, "tests", "patches", "megatron"),
         os.environ.get("PYTHONPATH", "")]), "RECOUP_BUILD": context.build, "PYTHONDONTWRITEBYTECODE": "1"}

    def start(*command):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
        print(done.stdout[-6000:], done.stderr[-3000:], flush=True)
        check(done.returncode == 0, f"{command[-1]}: ended with status {done.returncode}")
        return done.stdout
    launcher = ["-m", "recoup.megatron", "--recoup-engine", "recoup"]
    rows = json.loads(re.findall(r"^\{.*\}$", start(*launcher, __file__, context.device), re.M)[-1])
    for name, row in rows.items():
        check(row["equal"], f"{name}: gradients differ from those without recompute")
    script = os.path.join(tree, "pretrain_gpt.py")
    if context.dry or not os.path.exists(script):
        rows["pretrain_gpt.py"] = "not run: " + ("it asserts CUDA" if context.dry else "the folder is no checkout")
        return rows
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    without = losses(start(*torchrun, script, *PRETRAIN))
    check(len(without) == 5, "pretrain_gpt.py printed no losses")
    for n in (2, 4):
        ours = losses(start(*torchrun, *launcher, script, *PRETRAIN, *SELECTIVE, "--recompute-mlp-num-layers", str(n)))
        check(ours == without, f"pretrain_gpt.py: losses with {n} MLPs recomputed are {ours}, without {without}")
    rows["pretrain_gpt.py"] = without
    return rows


def losses(log):
    return re.findall(r"lm loss: (\S+)", log)


class OnGpu:
    """What cpu_megatron has, for a GPU."""

    def __init__(self):
        import tempfile

        import torch
        import torch.distributed as dist
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import random

        torch.cuda.set_device(0)
        dist.init_process_group("nccl", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        self.reset_tracker = lambda: (random.get_cuda_rng_tracker().reset(),
                                      random.model_parallel_cuda_manual_seed(7))


def step(torch, megatron, device, **options):
    """(gradients of one step, bytes that its forward leaves) of a GPTModel with dropout."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    small = device == "cpu"
    length, hidden, moe = (16, 16, options.get("num_moe_experts")) if small else (512, 512, options.get("num_moe_experts"))
    config = TransformerConfig(**{**dict(
        num_layers=4, hidden_size=hidden, num_attention_heads=2, ffn_hidden_size=4 * hidden, use_cpu_initialization=True,
        bias_dropout_fusion=False, bias_activation_fusion=False, masked_softmax_fusion=False, add_bias_linear=False,
        hidden_dropout=0.1, attention_dropout=0.1, gradient_accumulation_fusion=False), **options})
    megatron.reset_tracker()
    torch.manual_seed(0)
    spec = get_gpt_layer_local_spec(num_experts=moe) if moe else get_gpt_layer_local_spec()
    model = GPTModel(config, spec, vocab_size=64, max_sequence_length=length).to(device)
    megatron.reset_tracker()
    torch.manual_seed(1)
    tokens = (torch.arange(2 * length, device=device).view(2, length) * 7) % 61
    positions = torch.arange(length, device=device).expand(2, length)
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool, device=device), 1)
    before = 0 if small else torch.cuda.memory_allocated()
    loss = model(tokens, positions, mask).float().pow(2).mean()
    left = 0 if small else torch.cuda.memory_allocated() - before
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())], left


def graphed(torch, megatron, engine):
    """Output and gradients of an MLP with dropout from the tracker, replayed from CUDA graphs; engine: checkpoint."""
    from megatron.core import tensor_parallel

    torch.manual_seed(0)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = torch.nn.Linear(256, 1024), torch.nn.Linear(1024, 256)

        def forward(self, x):
            def mlp(x):
                with tensor_parallel.get_cuda_rng_tracker().fork():
                    return self.fc2(torch.nn.functional.dropout(torch.nn.functional.gelu(self.fc1(x)), 0.3))
            return engine(mlp, x)

    module = Module().cuda()
    x = torch.randn(128, 256, device="cuda", requires_grad=True)
    callable_ = torch.cuda.make_graphed_callables(module, (x.detach().clone().requires_grad_(),))
    results = []
    for _ in range(2):
        for t in (x, *module.parameters()):
            t.grad = None
        y = callable_(x)
        y.square().sum().backward()
        torch.cuda.synchronize()
        results += [y.detach().clone(), *(t.grad.clone() for t in (x, *module.parameters()))]
    return results


def same_bits(torch, a, b):
    return len(a) == len(b) and all(x is y is None or torch.equal(x, y) for x, y in zip(a, b))


def main(device):
    import torch

    if device == "cpu":
        import cpu_megatron as megatron
    else:
        megatron = OnGpu()
    from megatron.core.transformer.moe import moe_utils

    if getattr(moe_utils, "te_general_gemm", None) is None:
        moe_utils.te_general_gemm = None  # no Transformer Engine
    chosen = dict(recompute_granularity="selective")
    moe = dict(num_moe_experts=4, moe_router_topk=2, moe_token_dispatcher_type="alltoall",
               moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01)
    rows = {}
    for name, base, options in (
            ("mlp", {}, dict(recompute_modules=["core_attn", "mlp"], recompute_mlp_num_layers=3)),
            ("moe", moe, dict(recompute_modules=["moe"], recompute_moe_num_layers=3))):
        plain, before = step(torch, megatron, device, **base)
        ours, left = step(torch, megatron, device, **base, **chosen, **options)
        rows[name] = {"equal": same_bits(torch, plain, ours), "left_without": before, "left": left}
    if device != "cpu":
        import recoup
        from megatron.core.tensor_parallel import random
        from recoup.megatron._engine import _tracker_states

        random.initialize_rng_tracker(use_cudagraphable_rng=True, force_reset=True)
        runs = []
        for engine in (lambda f, x: f(x), lambda f, x: recoup.checkpoint(f, x, context=_tracker_states)):
            random.model_parallel_cuda_manual_seed(7)
            runs.append(graphed(torch, megatron, engine))
        rows["make_graphed_callables"] = {"equal": same_bits(torch, *runs)}
    print(json.dumps(rows), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
