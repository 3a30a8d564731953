"""Megatron-core on a machine without a GPU, in one process, or expert-parallel in torchrun's. Test code,
never product code.

Import before megatron: what Megatron asks of CUDA is answered by the CPU, its generator calls by the
CPU's generator.
"""
import contextlib
import os
import tempfile
from unittest import mock

import torch
import torch.distributed as dist
import torch.utils.cpp_extension


def _no_compiler(*_args, **_kwargs):
    raise RuntimeError("no CUDA extensions here")


torch.cuda.current_device = lambda: "cpu"
torch.cuda.manual_seed = torch.manual_seed
torch.cuda.get_rng_state = lambda *_a: torch.get_rng_state()
torch.cuda.Stream = mock.MagicMock  # of the alltoall dispatcher
torch.cuda.stream = lambda *_a: contextlib.nullcontext()
torch.cuda.current_stream = lambda *_a: None
torch.utils.cpp_extension.load_inline = _no_compiler  # 0.15 compiles an allocator at import

_all_to_all = dist.all_to_all_single


def _all_to_all_single(output, input, output_split_sizes=None, input_split_sizes=None, **kwargs):
    """Splits are moved off the GPU as arrays; here they are tensors still."""
    splits = [s.tolist() if isinstance(s, torch.Tensor) else s for s in (output_split_sizes, input_split_sizes)]
    return _all_to_all(output, input, *splits, **kwargs)


dist.all_to_all_single = torch.distributed.all_to_all_single = _all_to_all_single

RANKS = int(os.environ.get("WORLD_SIZE", 1))
if RANKS > 1:
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)

from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.tensor_parallel import random  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402

random._get_cuda_rng_state = lambda *_a, **_k: torch.get_rng_state()
random._set_cuda_rng_state = lambda state, *_a, **_k: torch.set_rng_state(state)
parallel_state.initialize_model_parallel(expert_model_parallel_size=RANKS)


def reset_tracker():
    random.get_cuda_rng_tracker().reset()
    random.model_parallel_cuda_manual_seed(7)


reset_tracker()

LAYERS = 4


def config(num_layers=LAYERS, **options):
    return TransformerConfig(**{**dict(
        num_layers=num_layers, hidden_size=16, num_attention_heads=2, ffn_hidden_size=64,
        use_cpu_initialization=True, bias_dropout_fusion=False, bias_activation_fusion=False,
        masked_softmax_fusion=False, add_bias_linear=False, hidden_dropout=0.1,
        attention_dropout=0.1), **options})


def model(**options):
    reset_tracker()
    torch.manual_seed(0)
    moe = options.get("num_moe_experts")
    spec = get_gpt_layer_local_spec(num_experts=moe) if moe else get_gpt_layer_local_spec()
    return GPTModel(config(**options), spec, vocab_size=64, max_sequence_length=16)


def gradients(gpt):
    """[loss, gradient of each parameter] of one step."""
    reset_tracker()
    torch.manual_seed(1)
    tokens = torch.arange(32).view(2, 16) % 61
    positions = torch.arange(16).expand(2, 16)
    mask = torch.triu(torch.ones(1, 1, 16, 16, dtype=torch.bool), 1)
    loss = gpt(tokens, positions, mask).float().pow(2).mean()
    loss.backward()
    return [loss.detach()] + [p.grad for p in gpt.parameters()]


def same_bits(a, b):
    return len(a) == len(b) and all(
        x is y is None or torch.equal(x, y) for x, y in zip(a, b))


if __name__ == "__main__":  # the reference: an unpatched run that recomputes nothing
    import sys

    torch.save([gradients(model(add_bias_linear=bias)) for bias in (False, True)], sys.argv[1])
