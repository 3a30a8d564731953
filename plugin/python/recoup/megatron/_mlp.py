"""A dense MLP through recoup's engine, in parts: MLP.forward without its fc2, which alone is run again, and fc2.

Megatron's MLP.forward has no seam between the activation and fc2. Here it runs with something that passes its
input on in fc2's place, to its end, so that it leaves NVTX ranges and hooks as it found them.
"""
import contextlib
import functools

import torch
from torch.nn.modules import module as torch_module

from . import _exchange

_FC2_RANGE = "megatron.core.transformer.mlp.forward.linear_fc2"  # as MLP.forward calls it


def called(function):
    """(function, keywords) of a function or module, or of a functools.partial of one, as TransformerLayer gives it."""
    if isinstance(function, functools.partial) and not function.args:
        return function.func, function.keywords
    return function, {}


def why_not(mlp, args, keywords):
    """What keeps an MLP from being run in parts, in a few words, or None."""
    from megatron.core.transformer.mlp import MLP

    if not isinstance(mlp, MLP) or type(mlp).forward is not MLP.forward or "forward" in vars(mlp):
        return "has a forward of its own"
    scaled = keywords.get("per_token_scale") is not None  # which is used after fc2
    if len(args) != 1 or not isinstance(args[0], torch.Tensor) or scaled:
        return "is given more than a tensor"
    if (mlp._forward_hooks or mlp._backward_hooks or mlp._backward_pre_hooks or torch_module._global_forward_hooks
            or torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks):
        return "has hooks on its results"
    return None


def leaves_hooks_open(mlp) -> bool:
    """Whether a recompute that ends within it would call hooks before modules and not those after them."""
    return bool(torch_module._global_forward_hooks) or any(
        module._forward_hooks for module in getattr(mlp, "modules", lambda: ())())


def checkpoint(mlp, hidden_states, keywords, tracker_states, flagged):
    """mlp(hidden_states, **keywords). tracker_states: called now, gives a context for recomputes; flagged: a context for
    every run."""
    from .. import checkpoint_parts

    first = _FirstPart(functools.partial(mlp, **keywords), mlp, tracker_states(), flagged)
    return checkpoint_parts(first, _Fc2(mlp.linear_fc2, flagged), hidden_states, name="mlp")


class _FirstPart:
    def __init__(self, call, mlp, restored, flagged):
        self._call, self._mlp, self._restored, self._flagged = call, mlp, restored, flagged
        self._again = False

    def __call__(self, hidden_states):
        around = self._restored() if self._again else contextlib.nullcontext()
        self._again = True
        with around, self._flagged(), _exchange.exchanged(self._mlp, "linear_fc2", lambda activated: (activated, None)):
            return self._call(hidden_states)[0]


class _Fc2:
    def __init__(self, fc2, flagged):
        self._fc2, self._flagged = fc2, flagged

    def __call__(self, activated):
        from megatron.core import utils

        push, pop = (getattr(utils, f"nvtx_range_{name}", lambda *_: None) for name in ("push", "pop"))
        with self._flagged():
            push(_FC2_RANGE)
            given = self._fc2(activated)
            pop(_FC2_RANGE)
            return given
