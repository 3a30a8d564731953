"""recoup's engine in Megatron; run by megatron_versions.py in the process with RECOUP_ENGINE=recoup."""
import logging
import os

import recoup.megatron  # noqa: F401

import cpu_megatron as cpu
import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.mlp import MLP

import recoup
from recoup.megatron import _engine, _log

REFERENCE = torch.load(os.environ["MEGATRON_REFERENCE"])
ALL = dict(recompute_granularity="selective", recompute_modules=["mlp"])


@pytest.fixture(autouse=True)
def forget():
    _log.once.cache_clear()


def said(caplog):
    return [r.getMessage() for r in caplog.records if "recoup's engine is not used for" in r.getMessage()]


def fc_calls(gpt, name="linear_fc1"):
    calls = [0]
    getattr(gpt.decoder.layers[0].mlp, name).register_forward_pre_hook(
        lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


class TestEngine:
    """recoup's C++ engine in place of tensor_parallel.checkpoint."""

    @pytest.mark.parametrize("bias", [False, True])
    def test_gradients_equal_the_unpatched_run(self, bias):
        gpt = cpu.model(recompute_modules=["core_attn", "mlp"] if not bias else ["mlp"],
                        recompute_mlp_num_layers=3, recompute_granularity="selective",
                        add_bias_linear=bias)
        calls = [0]
        gpt.decoder.layers[0].mlp.linear_fc2.register_forward_pre_hook(
            lambda *_: calls.__setitem__(0, calls[0] + 1))
        assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[bias])
        assert calls == [1]  # a recompute does not enter it

    def test_megatrons_rng_tracker_is_restored(self):
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        def noisy(x):
            with get_cuda_rng_tracker().fork():
                return torch.nn.functional.dropout(x * 2, 0.5) * 3

        def run(call):
            cpu.reset_tracker()
            x = torch.ones(64, requires_grad=True)
            y = call(x)
            noisy(y.detach())  # moves the tracker on between forward and backward
            after = get_cuda_rng_tracker().get_states()["model-parallel-rng"].clone()
            y.sum().backward()
            assert torch.equal(after, get_cuda_rng_tracker().get_states()["model-parallel-rng"])
            return [y.detach(), x.grad]

        assert cpu.same_bits(run(noisy), run(lambda x: recoup.checkpoint(
            noisy, x, context=_engine._tracker_states)))


def test_the_environment_has_chosen_the_engine():
    assert hasattr(tensor_parallel.checkpoint, "recoup_replaces")


class OwnMLP(torch.nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x, **_):
        return self.mlp(x)


def test_row_07_a_jobs_own_mlp_class_uses_the_engine(caplog):
    caplog.set_level(logging.INFO, logger="recoup")
    gpt = cpu.model(**ALL)
    calls = fc_calls(gpt, "linear_fc2")
    for layer in gpt.decoder.layers:
        layer.mlp = OwnMLP(layer.mlp)
    assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[0])
    assert calls == [2] and said(caplog) == []
    assert sum("OwnMLP has a forward of its own, so recoup recomputes it in one part, up to what fc2 saves" in
               r.getMessage() for r in caplog.records) == 1


def test_row_07_what_bypasses_the_engine_is_named_once(caplog):
    gpt = cpu.model(recompute_granularity="full", recompute_method="block", recompute_num_layers=2)
    cpu.gradients(gpt)
    cpu.gradients(gpt)
    assert said(caplog) == ["recoup's engine is not used for granularity full: Megatron's recomputes them"]


def test_row_07_fp8_is_named(caplog):
    gpt = cpu.model(**ALL)
    layer = gpt.decoder.layers[0]
    layer.config.fp8 = "hybrid"
    _engine.name_what_is_bypassed(layer)
    layer.config.fp8 = None
    assert len(said(caplog)) == 1 and "fp8" in said(caplog)[0]


def test_row_07_compiled_mlps_are_named(caplog):
    gpt = cpu.model(**ALL)
    layer = gpt.decoder.layers[0]
    layer.mlp = torch.compile(layer.mlp, backend="eager")
    why = _engine._why_megatrons(layer.mlp, False)
    assert why == "compiled MLPs"


def test_row_08_inside_cuda_graphs_as_megatrons():
    from megatron.core.transformer import cuda_graphs

    if not hasattr(cuda_graphs, "_set_warmup_start"):
        pytest.skip("no CUDA graph warm-up in this version")
    counts = {}
    for engine in ("recoup", "megatron"):
        ours = tensor_parallel.checkpoint
        if engine == "megatron":
            tensor_parallel.checkpoint = ours.recoup_replaces
        gpt = cpu.model(**ALL)
        layer, calls = gpt.decoder.layers[0], fc_calls(gpt)
        cuda_graphs._set_warmup_start()
        try:
            out = layer.mlp(torch.ones(2, 1, 16, requires_grad=True)) if not layer.recompute_mlp else \
                tensor_parallel.checkpoint(layer.mlp, False, torch.ones(2, 1, 16, requires_grad=True))
            out[0].sum().backward()
        finally:
            cuda_graphs._set_warmup_end()
            cuda_graphs._IS_GRAPH_WARMUP = False  # which 0.16 forgets
            tensor_parallel.checkpoint = ours
        counts[engine] = calls[0]
    assert counts["recoup"] == counts["megatron"]


def test_row_08_is_checkpointing_inside():
    from megatron.core.tensor_parallel import random

    if not hasattr(random, "is_checkpointing"):
        pytest.skip("no is_checkpointing in this version")
    gpt, seen = cpu.model(**ALL), []
    gpt.decoder.layers[0].mlp.linear_fc1.register_forward_pre_hook(
        lambda *_: seen.append(random.is_checkpointing()))
    cpu.gradients(gpt)
    assert seen == [True, True] and not random.is_checkpointing()


class OwnForward(MLP):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("own", [False, True], ids=["in parts", "in one part"])
def test_row_10_nvtx_ranges_are_balanced(own, monkeypatch):
    from megatron.core import utils

    if not hasattr(utils, "configure_nvtx_profiling"):
        pytest.skip("no NVTX ranges in this version")
    depth = [0]
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda *_: depth.__setitem__(0, depth[0] + 1))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda *_: depth.__setitem__(0, depth[0] - 1))
    utils.configure_nvtx_profiling(True)
    try:
        gpt = cpu.model(**ALL)
        for layer in gpt.decoder.layers:
            layer.mlp.__class__ = OwnForward if own else MLP
        utils.nvtx_range_push("steady")
        for _ in range(2):
            cpu.gradients(gpt)
        utils.nvtx_range_pop("steady")
        assert utils._nvtx_range_messages == [] and depth == [0]
    finally:
        utils.configure_nvtx_profiling(False)
        utils._nvtx_range_messages.clear()


def products(gpt, step):
    """How often fc2's weight of any layer is multiplied by an activation in a step's forwards and recomputes."""
    shape, matmul, count = gpt.decoder.layers[0].mlp.linear_fc2.weight.t().shape, torch.matmul, [0]

    def counting(a, b, **kwargs):
        count[0] += b.shape == shape and not b.is_contiguous()
        return matmul(a, b, **kwargs)

    torch.matmul = counting
    try:
        step(gpt)
    finally:
        torch.matmul = matmul
    return count[0]


SWIGLU = dict(gated_linear_unit=True, activation_func=torch.nn.functional.silu)


@pytest.mark.parametrize("options", [{}, SWIGLU, dict(add_bias_linear=True), dict(add_bias_linear=True, **SWIGLU)],
                         ids=["gelu", "swiglu", "bias", "swiglu and bias"])
def test_row_10_fc2_runs_once(options):
    gpt = cpu.model(**ALL, **options)
    assert products(gpt, cpu.gradients) == 4
    gpt.zero_grad()
    assert cpu.same_bits(cpu.gradients(gpt), cpu.gradients(cpu.model(**options)))
    ours = tensor_parallel.checkpoint
    tensor_parallel.checkpoint = ours.recoup_replaces
    try:
        if not options.get("add_bias_linear"):  # there it hangs
            assert products(cpu.model(**ALL, **options), cpu.gradients) == 8
    finally:
        tensor_parallel.checkpoint = ours


@pytest.mark.parametrize("name", ["mlp", "linear_fc1", "linear_fc2"])
def test_row_10_hooks_come_in_pairs(name):
    gpt, counts = cpu.model(**ALL), {"before": 0, "after": 0}

    def count(when):
        counts[when] += 1
    mlp = gpt.decoder.layers[0].mlp
    module = mlp if name == "mlp" else getattr(mlp, name)
    module.register_forward_pre_hook(lambda *_: count("before"))
    module.register_forward_hook(lambda _module, _args, out: count("after"))
    assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[0])
    assert counts["before"] == counts["after"] == (1 if name == "linear_fc2" else 2)


def test_row_10_a_hook_sees_what_the_mlp_gives():
    gpt, seen = cpu.model(**ALL), []
    gpt.decoder.layers[0].mlp.register_forward_hook(lambda _module, _args, out: seen.append(out[0].shape))
    cpu.gradients(gpt)
    assert seen == [(16, 2, 16)] * 2


def test_row_19_the_engine_names_no_folder_of_a_torch():
    """It loads beside the torch that imports it."""
    import shutil
    import subprocess

    from recoup import _engine as of_the_package

    if shutil.which("readelf") is None:
        pytest.skip("no readelf here")
    path = of_the_package.engine().__file__
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    assert "libtorch_python" in dynamic and "torch/lib" not in dynamic and os.path.dirname(torch.__file__) not in dynamic
