"""An MoE layer through recoup's engine: a recompute ends with the activation of the last expert.

Megatron's own recompute runs the whole layer again: router, dispatch, fc1, activation, fc2, combine. Here

    router       is not run again. It keeps what it saves (logits and scores: tokens x experts, and with
                 input jitter the noise), so that it cannot decide differently, and what it counts
                 (tokens of each expert, steps of a loss) is counted once.
    dispatch, fc1, activation   are run again, as they must be.
    fc2          is not run again: what it saves of its own is what the activation gave, which the
                 recompute brings back. (With gradient_accumulation_fusion it is.)
    what follows (combine, shared experts' addition) is not run again and keeps what it saves, which is
                 indices.

No order of operations changes, so gradients are bit-equal. The recompute is asked for at one place, just
after the experts, on every rank: also on one whose experts got no token, since the dispatch of a recompute
is a collective.
"""
import contextlib

import torch
from torch.utils import _pytree

from . import _exchange

_set_tracing = getattr(torch._C._autograd, "_saved_tensors_hooks_set_tracing", None)


def layer_of(function):
    """The MoE layer whose forward's inner function this is; None: it is another function."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    if "self" not in names:
        return None
    from megatron.core.transformer.moe.moe_layer import BaseMoELayer

    layer = function.__closure__[names.index("self")].cell_contents
    return layer if isinstance(layer, BaseMoELayer) else None


def has_router(module) -> bool:
    """Whether something in it counts what it routes: run again as it is, it would count twice."""
    from megatron.core.transformer.moe.router import Router

    return any(isinstance(part, Router) for part in module.modules())


def why_not(layer):
    """What keeps recoup's engine from an MoE layer, in a few words, or None."""
    config = layer.config
    if _set_tracing is None:
        return "moe with this PyTorch, which cannot set its saved-tensor hooks aside"
    if getattr(layer, "shared_expert_overlap", False):
        return "moe with moe_shared_expert_overlap"
    if config.moe_token_dispatcher_type not in ("allgather", "alltoall"):
        return f"moe with the {config.moe_token_dispatcher_type} dispatcher"
    if "moe_act" in (config.recompute_modules or ()):
        return "moe together with moe_act"
    missing = [name for name in ("router", "experts") if name not in layer._modules]
    return f"moe in a {type(layer).__name__} without {missing[0]}" if missing else None


class Region:
    """An MoE layer's inner forward for recoup.checkpoint: called once forward, and again in a recompute."""

    def __init__(self, layer, function):
        self.layer, self.function = layer, function
        self._routed, self._fc2 = [], []  # of the forward: what each call gave
        self._forward_done = False
        self._outside = False  # what is saved now is not the region's

    def __call__(self, hidden_states, *args):
        again, self._forward_done = self._forward_done, True
        self._calls, self._last = {"router": 0, "fc2": 0}, None
        experts, shared = self.layer.experts, getattr(self.layer, "shared_experts", None)
        with contextlib.ExitStack() as exchanged:
            def exchange(module, name, call):
                exchanged.enter_context(_exchange.exchanged(module, name, call))

            exchanged.callback(self._run_ends)
            exchange(self.layer, "router", _bound(self._route, self.layer.router, again))
            # The fused kernel adds to what it finds on the weight that fc2 saved: on itself, which
            # the engine's hooks leave and ours cannot.
            fused = getattr(self.layer.config, "gradient_accumulation_fusion", False)
            singles, group = ([], False) if fused else _without_fc2(experts)
            for mlp in singles:
                exchange(mlp, "linear_fc2", _bound(self._run_fc2, mlp.linear_fc2, again, None))
            if group:
                exchange(experts, "linear_fc2", _bound(self._run_fc2, experts.linear_fc2, again, hidden_states))
            for name, one in _one_by_one(experts):
                exchange(experts.local_experts, name, _bound(self._run_mlp, one))
            exchange(self.layer, "experts", _bound(self._run_experts, experts, hidden_states))
            if (shared is not None and _is_plain_mlp(shared) and not fused
                    and not getattr(self.layer, "shared_experts_recompute", False)):
                exchange(shared, "linear_fc2", _bound(self._run_fc2, shared.linear_fc2, again, None))
                exchange(self.layer, "shared_experts", _bound(self._run_mlp, shared))
            return self.function(hidden_states, *args)

    def _leave(self):
        """From here on autograd keeps what it saves, as it does where nothing is recomputed."""
        if not self._outside:
            self._outside, self._before = True, _set_tracing(True)

    def _inside(self):
        if self._outside:
            self._outside = False
            _set_tracing(self._before)

    def _run_ends(self):
        self._inside()
        self._last = None  # a node of the graph that owns this

    def _route(self, router, again, *args, **kwargs):
        if again:
            self._calls["router"] += 1
            return self._routed[self._calls["router"] - 1].again()
        self._leave()
        before = _generators()
        try:
            given = router(*args, **kwargs)
        finally:
            self._inside()
        self._routed.append(_Routed(given, before))
        return given

    def _run_mlp(self, mlp, *args, **kwargs):
        """An expert: what follows its fc2 is outside, and what follows itself is not."""
        try:
            return mlp(*args, **kwargs)
        finally:
            self._inside()

    def _run_fc2(self, fc2, again, hidden_states, activated, *args, **kwargs):
        """hidden_states: given where the recompute ends here."""
        if not activated.requires_grad:
            return fc2(activated, *args, **kwargs)
        held = {}
        activated = _Mark.apply(activated, hidden_states, held)
        if hidden_states is not None:
            self._last = activated.grad_fn, held
        self._leave()
        if again:
            self._calls["fc2"] += 1
            shape, dtype = self._fc2[self._calls["fc2"] - 1]
            return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True), None
        with torch.autograd.graph.saved_tensors_hooks(*_pack_and_unpack(activated, held)):
            self._inside()  # of the hooks just pushed, which the region's would not see
            try:
                output, bias = fc2(activated, *args, **kwargs)
            finally:
                self._leave()
        self._fc2.append((output.shape, output.dtype))
        return output, bias

    def _run_experts(self, experts, hidden_states, *args, **kwargs):
        given = experts(*args, **kwargs)
        self._inside()
        output = given[0]
        if output.requires_grad:
            if self._last is not None:
                self._leave()
            given = (_Gate.apply(output, hidden_states, self._last), *given[1:])
        self._leave()
        return given


def _bound(method, *first):
    return lambda *args, **kwargs: method(*first, *args, **kwargs)


def _is_plain_mlp(module) -> bool:
    """Whether fc2's output is not used by anything that saves it: Megatron's own forward, no gate."""
    from megatron.core.transformer.mlp import MLP
    from megatron.core.transformer.moe.shared_experts import SharedExpertMLP

    return (type(module).forward in (MLP.forward, SharedExpertMLP.forward)
            and not getattr(module, "use_shared_expert_gate", False))


def _one_by_one(experts):
    """(name, expert) of experts that are run one after the other."""
    return list(getattr(experts, "local_experts", torch.nn.ModuleList())._modules.items())


def _without_fc2(experts):
    """(experts that are run one by one and whose fc2 a recompute need not run, whether it need not run that of
    a group)."""
    from megatron.core.transformer.moe.experts import SequentialMLP

    single = [expert for _, expert in _one_by_one(experts)]
    if single:
        known = type(experts).forward is SequentialMLP.forward and all(map(_is_plain_mlp, single))
        return (single if known else []), False
    return [], "linear_fc2" in experts._modules


class _Mark(torch.autograd.Function):
    """The activation that fc2 saves, saved by the region; beside it what ends the recompute here."""

    @staticmethod
    def forward(ctx, activated, hidden_states, held):
        ctx.save_for_backward(activated, *([] if hidden_states is None else [hidden_states]))
        ctx.held = held
        return activated.view_as(activated)

    @staticmethod
    def backward(ctx, gradient):
        ctx.held.clear()
        return gradient, None, None


class _Gate(torch.autograd.Function):
    """Where every rank asks for the recompute, which ends here or at the Mark `last`."""

    @staticmethod
    def forward(ctx, output, hidden_states, last):
        ctx.last = last
        if last is None:
            ctx.save_for_backward(hidden_states)
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.last:
            node, held = ctx.last
            held["base"] = node.saved_tensors[0]  # which the engine frees once another node reads
        else:
            ctx.saved_tensors
        return gradient, None, None


def _pack_and_unpack(activated, held):
    """Hooks for fc2: of what it saves, views of the activation come back from the region. What came back is
    held for all nodes of fc2, until the Mark's turn."""
    node, storage, version = activated.grad_fn, activated.untyped_storage().data_ptr(), activated._version
    offset, dtype, bytes_ = activated.storage_offset(), activated.dtype, activated.untyped_storage().nbytes()
    del activated

    def pack(t):
        plain = type(t) is torch.Tensor and t.layout is torch.strided
        if (plain and bytes_ and t.dtype == dtype and t.untyped_storage().data_ptr() == storage
                and t._version == version):
            return t.size(), t.stride(), t.storage_offset() - offset
        kept = t if t.is_leaf else t.detach()
        return kept, kept._version

    def unpack(packed):
        if not isinstance(packed[0], torch.Size):
            kept, then = packed
            if kept._version != then:
                raise RuntimeError(f"recoup: moe: a tensor that fc2 saved ({tuple(kept.shape)}) was modified in "
                                   "place since the forward")
            return kept
        size, stride, from_start = packed
        if not held:
            held["base"] = node.saved_tensors[0]
        base = held["base"]
        return base.as_strided(size, stride, base.storage_offset() + from_start)

    return pack, unpack


def _generators():
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


class _Routed:
    """What a router gave, and where it left the generators that it drew from."""

    def __init__(self, given, before):
        leaves, self._spec = _pytree.tree_flatten(given)
        self._leaves = [(leaf.detach(), leaf._version, leaf.requires_grad)
                        if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        after = _generators()
        drew = any(not torch.equal(a, b) for a, b in zip(after, before))
        self._after = after if drew else None

    def again(self):
        if self._after:
            torch.set_rng_state(self._after[0])
            for state in self._after[1:]:
                torch.cuda.set_rng_state(state)
        leaves = []
        for leaf in self._leaves:
            if isinstance(leaf, tuple):
                data, version, requires_grad = leaf
                if data._version != version:
                    raise RuntimeError("recoup: moe: what the router gave was modified in place since the "
                                       "forward, so the recompute would route otherwise")
                leaf = data.detach().requires_grad_(requires_grad)
            leaves.append(leaf)
        return _pytree.tree_unflatten(leaves, self._spec)
