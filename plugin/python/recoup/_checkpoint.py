"""recoup.checkpoint: the engine for a function in Python."""
import contextlib

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ._engine import engine


def checkpoint(function, *args, use_reentrant=False, preserve_rng_state=True, context_fn=None,
               determinism_check="default", debug=False, early_stop=True, name="checkpoint",
               context=None, **kwargs):
    """function(*args, **kwargs), keeping only the tensors among its arguments until backward.

    Backward runs `function` once more, up to the last tensor that it needs. Results and gradients are
    bit-equal to those of a plain call. The tensors among the arguments are found in nested tuples,
    lists, dicts, namedtuples, dataclasses and what is registered with torch.utils._pytree; a recompute
    gets tensors of the same type with the same Python attributes, in containers as they were when this
    was called. Every other argument is passed as it is, and the result is what function returned.

    preserve_rng_state  False: the function draws no random numbers, so no generator's state is kept
    context_fn          returns two context managers, for the forward and for each recompute
    early_stop          False: a recompute runs to the function's end
    name                of the region in errors, such as "layer 3 mlp"
    context             called now; what it returns is called for a context manager around each
                        recompute, such as one that brings a generator of the caller's own back

    All but the last two are torch.utils.checkpoint's. What that also takes is refused with a ValueError
    where it means something that this engine does not do: use_reentrant=True, determinism_check="none"
    (the recompute's tensors are always compared with the forward's) and debug=True.

    Under torch.compile (where the call itself is compiled) the compiler's own recompute takes over:
    the call becomes torch.utils.checkpoint's, which torch.compile knows.

    What may go wrong in backward: RuntimeError where a tensor was modified in place since the forward,
    or where the function computes something else when it is run again.
    """
    if use_reentrant or debug or determinism_check != "default":
        _refuse(use_reentrant, determinism_check, debug)
    return run(function, args, kwargs, name, preserve_rng_state, early_stop, context_fn, context)


def run(function, args, kwargs, name="checkpoint", preserve_rng_state=True, early_stop=True,
        context_fn=None, context=None):
    """checkpoint() for a function whose keywords may be anything."""
    if torch.compiler.is_compiling():
        return torch_checkpoint(function, *args, use_reentrant=False,
                                preserve_rng_state=preserve_rng_state, **kwargs)
    extension = engine()
    if not kwargs and context_fn is context is None and extension.plain_tensors(args):
        return extension.checkpoint(function, None, args, args, kwargs, name, preserve_rng_state,
                                    early_stop)
    return _general(function, args, kwargs, name, preserve_rng_state, early_stop, context_fn, context)


def _general(function, args, kwargs, name, preserve_rng_state, early_stop, context_fn, context):
    from ._values import Arguments

    arguments = Arguments(args, kwargs)
    around_forward, around_recompute = context_fn() if context_fn else (None, contextlib.nullcontext())
    more_context = context() if context else contextlib.nullcontext

    def forward(*args, **kwargs):
        with around_forward:
            return function(*args, **kwargs)

    def recompute(*tensors):
        args, kwargs = arguments.rebuild(tensors)
        with around_recompute, more_context():
            function(*args, **kwargs)

    return engine().checkpoint(function if around_forward is None else forward, recompute,
                               arguments.release(), args, kwargs, name, preserve_rng_state, early_stop)


def _refuse(use_reentrant, determinism_check, debug):
    if use_reentrant:
        raise ValueError("recoup.checkpoint: use_reentrant=True is not supported: the engine is "
                         "non-reentrant; leave it out or pass False")
    if determinism_check != "default":
        raise ValueError(f"recoup.checkpoint: determinism_check={determinism_check!r} is not supported: "
                         "the recompute's tensors are always compared with the forward's; leave it out "
                         'or pass "default"')
    if debug:
        raise ValueError("recoup.checkpoint: debug=True is not supported; errors name the region and "
                         "the tensor: leave it out or pass False")


def recomputing():
    """Whether this thread runs a recompute: for a function that counts, as BatchNorm and routers do."""
    return engine().recomputing()
