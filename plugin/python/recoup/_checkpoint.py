"""recoup.checkpoint and recoup.checkpoint_parts: the engine for functions in Python."""
import contextlib
import functools
import logging
import os

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ._engine import engine

CHECKS = ("shapes", "values", "copy")  # by the engine's numbers


def checkpoint(function, *args, use_reentrant=False, preserve_rng_state=True, context_fn=None,
               determinism_check="default", debug=False, early_stop=True, name="checkpoint",
               context=None, recompute=True, check=None, **kwargs):
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
    recompute           False: a plain call, which keeps what autograd saves, for where a host must not
                        recompute (while CUDA graphs warm up and are captured, say)
    check               for finding out why gradients differ: "values" compares a checksum of each 4,096
                        elements of what the recompute saves with the forward's, "copy" every element
                        with a copy that it keeps; both are slow. None: as the environment variable
                        RECOUP_CHECK said at the first checkpoint, else "shapes", which is always done

    All but the last four are torch.utils.checkpoint's. What that also takes is refused with a ValueError
    where it means something that this engine does not do: use_reentrant=True, determinism_check="none"
    (the recompute's tensors are always compared with the forward's) and debug=True.

    Under torch.compile (where the call itself is compiled) the compiler's own recompute takes over:
    the call becomes torch.utils.checkpoint's, which torch.compile knows.

    What may go wrong in backward: RuntimeError where a tensor was modified in place since the forward,
    or where the function computes something else when it is run again.
    """
    if use_reentrant or debug or determinism_check != "default":
        _refuse(use_reentrant, determinism_check, debug)
    if not recompute:
        with context_fn()[0] if context_fn else contextlib.nullcontext():
            return function(*args, **kwargs)
    return run(function, args, kwargs, name, preserve_rng_state, early_stop, context_fn, context, check)


def run(function, args, kwargs, name="checkpoint", preserve_rng_state=True, early_stop=True,
        context_fn=None, context=None, check=None):
    """checkpoint() for a function whose keywords may be anything."""
    if torch.compiler.is_compiling():
        return torch_checkpoint(function, *args, use_reentrant=False,
                                preserve_rng_state=preserve_rng_state, **kwargs)
    extension = engine()
    check = _default_check() if check is None else _check(check, "check=")
    if not kwargs and context_fn is context is None and extension.plain_tensors(args):
        return extension.checkpoint(function, None, args, args, kwargs, name, preserve_rng_state,
                                    early_stop, check)
    return _general(function, args, kwargs, name, preserve_rng_state, early_stop, context_fn, context,
                    check)


def checkpoint_parts(recomputed, rest, *args, name="checkpoint", preserve_rng_state=True, recompute=True,
                     check=None):
    """rest(*recomputed(*args)), where only `recomputed` is ever run again: for an MLP, fc1 and the
    activation, then fc2.

    The recompute ends by returning, which costs less than stopping within the forward, as checkpoint()
    does. What is kept, results and gradients are the same. `args` are tensors; `recomputed` gives a
    tensor, or a tuple or list of tensors, which `rest` gets one by one (SwiGLU's two, say), and whose
    result may be anything. Where `rest` saves something that neither its parameters nor what it is
    given hold (a dropout's mask, autocast's copy of a weight), both are run again as one, with early
    stop, and a warning says so once.

    The other keywords are checkpoint()'s. In three parts, fc1 | activation | fc2: at level full
    checkpoint_parts(lambda x: activation(fc1(x)), fc2, x), at level activation, which keeps fc1's output
    and repeats no GEMM, checkpoint_parts(activation, fc2, fc1(x)).
    """
    if not recompute:
        return _in_turn(recomputed, rest, *args)
    if torch.compiler.is_compiling():
        return torch_checkpoint(_in_turn, recomputed, rest, *args, use_reentrant=False,
                                preserve_rng_state=preserve_rng_state)
    extension = engine()
    check = _default_check() if check is None else _check(check, "check=")
    if extension.plain_tensors(args):
        return extension.checkpoint_parts(recomputed, rest, args, name, preserve_rng_state, check)
    for arg in args:
        if not isinstance(arg, torch.Tensor):
            raise TypeError(f"recoup.checkpoint_parts: an argument is a {type(arg).__name__}; all must be "
                            "tensors: bind other values to the functions, or use recoup.checkpoint")
    from ._values import Arguments

    arguments = Arguments(args, {})
    return extension.checkpoint_parts(lambda *tensors: recomputed(*arguments.rebuild(tensors)[0]), rest,
                                      arguments.release(), name, preserve_rng_state, check)


def _in_turn(recomputed, rest, *args):
    given = recomputed(*args)
    return rest(*given) if isinstance(given, (tuple, list)) else rest(given)


def _check(value, where):
    if value not in CHECKS:
        raise ValueError(f"recoup.checkpoint: {where}{value!r} is no check; allowed are "
                         f"{', '.join(map(repr, CHECKS))}")
    return CHECKS.index(value)


@functools.lru_cache(maxsize=None)
def _default_check():
    check = _check(os.environ.get("RECOUP_CHECK") or "shapes", "RECOUP_CHECK=")
    if check:
        logging.getLogger("recoup").warning(
            "recoup: RECOUP_CHECK=%s: the values of every recompute are compared with the forward's, which is "
            "slow; unset it to train", CHECKS[check])
    return check


def _general(function, args, kwargs, name, preserve_rng_state, early_stop, context_fn, context, check):
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
                               arguments.release(), args, kwargs, name, preserve_rng_state, early_stop, check)


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
