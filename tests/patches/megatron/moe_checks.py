"""MoE layers by recoup's engine in one process; run by megatron_versions.py with RECOUP_ENGINE=recoup.
moe_ranks.py has them expert-parallel."""
import recoup.megatron  # noqa: F401

import cpu_megatron as cpu
import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.moe import moe_utils

from recoup.megatron import _log, _moe

moe_utils.te_general_gemm = None  # no Transformer Engine here
MOE = dict(recompute_granularity="selective", recompute_modules=["moe"])
FFN = 128


@pytest.fixture(autouse=True)
def forget():
    _log.once.cache_clear()


def model(**options):
    return cpu.model(**{**dict(num_moe_experts=4, moe_router_topk=2, moe_ffn_hidden_size=FFN,
                               moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01), **options})


def entered(gpt, *names):
    """Calls of modules of layer 1's MoE layer: {the last part of its path: calls}."""
    calls = dict.fromkeys(names, 0)
    for path, module in gpt.decoder.layers[0].mlp.named_modules():
        name = path.split(".")[-1]
        if name in calls:
            module.register_forward_pre_hook(
                lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    return calls


def kept(gpt):
    """Bytes that a forward leaves."""
    positions = torch.arange(16).expand(2, 16)
    mask = torch.triu(torch.ones(1, 1, 16, 16, dtype=torch.bool), 1)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        out = gpt(torch.arange(32).view(2, 16) % 61, positions, mask)
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.function_events)


OPTIONS = {
    "allgather": {}, "alltoall": dict(moe_token_dispatcher_type="alltoall"),
    "shared experts": dict(moe_shared_expert_intermediate_size=24, moe_token_dispatcher_type="alltoall"),
    "dense layers between": dict(moe_layer_freq=[0, 1, 0, 1], recompute_modules=["moe", "mlp"]),
    "some layers": dict(recompute_moe_num_layers=2),
    "capacity": dict(moe_expert_capacity_factor=1.0, moe_token_dispatcher_type="alltoall"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_those_of_no_recompute(options):
    without = {k: v for k, v in options.items() if not k.startswith("recompute")}
    assert cpu.same_bits(cpu.gradients(model(**{**MOE, **options})), cpu.gradients(model(**without)))


def test_router_fc2_and_combine_run_once():
    gpt = model(**MOE, moe_token_dispatcher_type="alltoall", moe_shared_expert_intermediate_size=24)
    calls = entered(gpt, "router", "linear_fc1", "linear_fc2")
    dispatcher, combined = gpt.decoder.layers[0].mlp.token_dispatcher, []
    combine = dispatcher.token_combine
    dispatcher.token_combine = lambda *args, **kwargs: combined.append(1) or combine(*args, **kwargs)
    cpu.gradients(gpt)
    assert calls == {"router": 1, "linear_fc1": 10, "linear_fc2": 5} and len(combined) == 1


def test_no_more_is_kept_than_by_megatrons_own():
    options = dict(MOE, moe_token_dispatcher_type="alltoall")
    without, recoups = kept(model(moe_token_dispatcher_type="alltoall")), kept(model(**options))
    ours = tensor_parallel.checkpoint
    tensor_parallel.checkpoint = ours.recoup_replaces
    try:
        megatrons = kept(model(**options))
    finally:
        tensor_parallel.checkpoint = ours
    assert recoups <= megatrons < without


class Grouped(torch.nn.Module):
    """A CPU stand-in for experts as one grouped GEMM, as TEGroupedMLP has them."""

    class Linear(torch.nn.Module):
        def __init__(self, groups, ins, outs):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(groups, outs, ins) * 0.1)

        def forward(self, x, sizes):
            parts = torch.split(x, sizes.tolist())
            return torch.cat([torch.matmul(part, w.t()) for part, w in zip(parts, self.weight)]), None

    def __init__(self, num_local_experts, config, *_args, **_kwargs):
        super().__init__()
        self.linear_fc1 = self.Linear(num_local_experts, config.hidden_size, FFN)
        self.linear_fc2 = self.Linear(num_local_experts, FFN, config.hidden_size)

    def forward(self, x, tokens_per_expert, probs):
        h, _ = self.linear_fc1(x, tokens_per_expert)
        return self.linear_fc2(torch.nn.functional.gelu(h) * probs.unsqueeze(-1), tokens_per_expert)


def grouped(**options):
    gpt = model(**options)
    torch.manual_seed(5)
    for layer in gpt.decoder.layers:
        layer.mlp.experts = Grouped(4, gpt.config)
    return gpt


def test_grouped_experts():
    gpt = grouped(**MOE, moe_token_dispatcher_type="alltoall")
    calls = entered(gpt, "router", "linear_fc1", "linear_fc2")
    assert cpu.same_bits(cpu.gradients(gpt), cpu.gradients(grouped(moe_token_dispatcher_type="alltoall")))
    assert calls == {"router": 1, "linear_fc1": 2, "linear_fc2": 1}


def test_experts_that_recoup_does_not_know_run_again_up_to_their_end(monkeypatch):
    class Own(type(model().decoder.layers[0].mlp.experts)):
        def forward(self, x, sizes, probs):
            out, bias = super().forward(x, sizes, probs)
            return out * out, bias  # saves what fc2 gives

    def own(**options):
        gpt = model(**options)
        for layer in gpt.decoder.layers:
            layer.mlp.experts.__class__ = Own
        return gpt
    gpt = own(**MOE)
    calls = entered(gpt, "router", "linear_fc2")
    assert cpu.same_bits(cpu.gradients(gpt), cpu.gradients(own()))
    assert calls == {"router": 1, "linear_fc2": 8}


def test_a_router_that_decides_by_chance_decides_once():
    def by_chance(gpt):
        for layer in gpt.decoder.layers:
            def forward(*args, _real=layer.mlp.router.forward, **kwargs):
                probs, routing_map = _real(*args, **kwargs)
                shuffled = torch.randperm(4)
                return probs[:, shuffled], routing_map[:, shuffled]
            layer.mlp.router.forward = forward
        return gpt
    assert cpu.same_bits(cpu.gradients(by_chance(model(**MOE))), cpu.gradients(by_chance(model())))


def test_what_a_router_gave_and_somebody_changed_is_an_error():
    gpt, given = model(**MOE), []
    gpt.decoder.layers[0].mlp.router.register_forward_hook(lambda _m, _a, out: given.append(out[1]))
    positions, mask = torch.arange(16).expand(2, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    loss = gpt(torch.arange(32).view(2, 16), positions, mask).sum()
    given[0].zero_()
    with pytest.raises(RuntimeError, match="what the router gave was modified in place"):
        loss.backward()


class OwnMoe(torch.nn.Module):
    def __init__(self, moe):
        super().__init__()
        self.moe = moe

    def forward(self, x, **_):
        return self.moe(x)


def test_row_07_what_has_a_router_of_its_own_is_left_to_megatron(caplog):
    def own(**options):
        gpt = model(moe_router_enable_expert_bias=True, moe_router_score_function="sigmoid", **options)
        for layer in gpt.decoder.layers:
            layer.mlp, layer.recompute_mlp = OwnMoe(layer.mlp), bool(options)
        cpu.gradients(gpt)
        return [layer.mlp.moe.router.local_tokens_per_expert for layer in gpt.decoder.layers]
    assert cpu.same_bits(own(recompute_granularity="selective", recompute_modules=["mlp"]), own())
    assert [r.getMessage() for r in caplog.records if "is not used for" in r.getMessage()] == [
        "recoup's engine is not used for OwnMoe, which has a router and is no MoELayer: Megatron's recomputes them"]


def test_row_07_moe_in_cuda_graphs_is_left_to_megatron(caplog):
    class MoETransformerLayer:
        def _forward_mlp(self, x):
            def _forward_mlp_partial_cudagraphs(x):
                return x * 2
            return tensor_parallel.checkpoint(_forward_mlp_partial_cudagraphs, False, x)

    x = torch.ones(3, requires_grad=True)
    MoETransformerLayer()._forward_mlp(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    assert sum("of moe in CUDA graphs: Megatron's" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("change, words", [
    (dict(moe_token_dispatcher_type="flex"), "moe with the flex dispatcher"),
    (dict(recompute_modules=["moe", "moe_act"]), "moe together with moe_act"),
], ids=["flex", "moe_act"])
def test_row_07_what_is_not_for_the_engine_is_said(change, words):
    layer = model().decoder.layers[0].mlp
    for name, value in change.items():
        setattr(layer.config, name, value)
    assert _moe.why_not(layer) == words
    layer.config.moe_token_dispatcher_type, layer.config.recompute_modules = "alltoall", ["moe"]
    layer.shared_expert_overlap = True
    assert _moe.why_not(layer) == "moe with moe_shared_expert_overlap"


@pytest.mark.parametrize("build, module", [(model, "moe"), (cpu.model, "mlp")], ids=["moe", "mlp"])
def test_fused_gradient_accumulation_finds_the_weights_themselves(build, module, monkeypatch):
    """The kernel is Megatron's extension, here by a product."""
    import types

    from megatron.core.tensor_parallel import layers

    def add(total_input, grad_output, main_grad):
        main_grad += grad_output.t() @ total_input

    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda",
                        types.SimpleNamespace(wgrad_gemm_accum_fp32=add), raising=False)

    def main_grads(**options):
        gpt = build(gradient_accumulation_fusion=True, **options)
        for parameter in gpt.parameters():
            parameter.main_grad, parameter.grad_added_to_main_grad = torch.zeros_like(parameter), False
        cpu.gradients(gpt)
        # Those that linear layers added, and whose grad is there only for whoever waits for it.
        added = [p for p in gpt.parameters() if p.grad_added_to_main_grad]
        assert len(added) > 8 and all(p.grad is not None for p in added)
        return [p.main_grad for p in added]
    assert cpu.same_bits(main_grads(recompute_granularity="selective", recompute_modules=[module]), main_grads())


def test_inference_and_a_retained_graph():
    gpt = model(**MOE)
    with torch.no_grad():
        assert not gpt(torch.arange(32).view(2, 16), torch.arange(16).expand(2, 16),
                       torch.zeros(1, 1, 16, 16, dtype=torch.bool)).requires_grad
    loss = gpt(torch.arange(32).view(2, 16), torch.arange(16).expand(2, 16),
               torch.zeros(1, 1, 16, 16, dtype=torch.bool)).pow(2).mean()
    parameters = [p for p in gpt.parameters() if p.requires_grad]
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for _ in range(2))
    assert cpu.same_bits(first, second)


def test_nothing_outlives_the_graph():
    import gc
    import weakref

    gc.disable()
    try:
        for gpt in (model(**MOE), grouped(**MOE)):
            seen = []
            gpt.decoder.layers[0].mlp.experts.register_forward_hook(
                lambda _m, args, _out: seen.append(weakref.ref(args[0])))
            loss = gpt(torch.arange(32).view(2, 16), torch.arange(16).expand(2, 16),
                       torch.zeros(1, 1, 16, 16, dtype=torch.bool)).sum()
            loss.backward()
            del loss
            assert seen and all(ref() is None for ref in seen)
    finally:
        gc.enable()
