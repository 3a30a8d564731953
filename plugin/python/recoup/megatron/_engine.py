"""recoup's engine in place of Megatron's for the checkpoints of MLPs and MoE layers (RECOUP_ENGINE=recoup)."""
import contextlib
import functools
import inspect
import os
import sys

from . import _log, _mlp, _moe

_NAMES = ("megatron", "recoup")


def wanted() -> bool:
    engine = os.environ.get("RECOUP_ENGINE") or "megatron"
    if engine not in _NAMES:
        raise ValueError(f"RECOUP_ENGINE={engine}: allowed are {' and '.join(_NAMES)}")
    return engine == "recoup"


def installed(tensor_parallel) -> None:
    if wanted():
        _use(tensor_parallel)


def use_engine() -> None:
    """From now on, whatever the environment says."""
    from megatron.core import tensor_parallel

    _use(tensor_parallel)


def stop_using() -> None:
    from megatron.core import tensor_parallel

    tensor_parallel.checkpoint = getattr(tensor_parallel.checkpoint, "recoup_replaces",
                                         tensor_parallel.checkpoint)


def _use(tensor_parallel) -> None:
    from .._engine import engine

    megatrons = tensor_parallel.checkpoint
    if hasattr(megatrons, "recoup_replaces"):
        return
    engine()  # an error now, where there is none
    code = inspect.unwrap(megatrons).__code__
    # Megatron's own recomputes nothing inside a CUDA graph since 0.18.
    asks_of_graphs = "is_graph_warmup" in code.co_names + code.co_varnames

    @functools.wraps(megatrons)
    def dispatch(function, distribute_saved_activations, *args):
        why = "" if asks_of_graphs and _in_a_graph() else _why_megatrons(function, distribute_saved_activations)
        if why is None:
            return _checkpoint(function, *args)
        if why:
            _log.once(f"recoup's engine is not used for {why}: Megatron's recomputes them",
                      _log.logging.WARNING)
        return megatrons(function, distribute_saved_activations, *args)

    dispatch.recoup_replaces = megatrons
    tensor_parallel.checkpoint = dispatch


def name_what_is_bypassed(layer) -> None:
    """For layers whose checkpoints do not come by our dispatch."""
    if not hasattr(sys.modules["megatron.core.tensor_parallel"].checkpoint, "recoup_replaces"):
        return
    config = getattr(layer, "config", None)
    if getattr(layer, "recompute_mlp", False) and (getattr(config, "fp8", None)
                                                   or getattr(config, "fp4", None)):
        _log.once("recoup's engine is not used for the MLPs of an fp8 or fp4 job: Megatron recomputes them by "
                  "Transformer Engine's checkpoint", _log.logging.WARNING)


def _in_a_graph() -> bool:
    graphs = sys.modules.get("megatron.core.transformer.cuda_graphs")
    return graphs is not None and (graphs.is_graph_warmup() or graphs.is_graph_capturing())


def _why_megatrons(function, distribute):
    """None: recoup's engine runs it. Else what is not for it, in a few words; empty: nothing to say."""
    from megatron.core.transformer.mlp import MLP

    if distribute:
        return "checkpoints with distribute_saved_activations"
    module, _ = _mlp.called(function)
    if isinstance(module, MLP):
        return None
    if type(module).__name__ == "OptimizedModule":
        return "compiled MLPs"
    layer = _moe.layer_of(module)
    if layer is not None:
        return _moe.why_not(layer)
    owner = getattr(module, "__qualname__", "")
    if "TransformerBlock" in owner or "checkpoint" in owner or "custom_forward" in owner:
        return "granularity full"
    if "ttention" in owner or not _is_a_layers_mlp():
        return ""  # recoup's engine is for MLPs
    if not isinstance(module, sys.modules["torch"].nn.Module):
        return f"{owner.split('.')[0]}'s own function" + (" of moe in CUDA graphs" if "cudagraph" in owner else "")
    if _moe.has_router(module):
        return f"{type(module).__name__}, which has a router and is no MoELayer"
    return None


def _is_a_layers_mlp() -> bool:
    """Whether a TransformerLayer asks, for an MLP that is a class of the job's own."""
    frame = sys._getframe(3)
    return frame.f_code.co_name in ("_run_mlp", "_forward_mlp")


def _checkpoint(function, *args):
    from .. import checkpoint

    layer = _moe.layer_of(_mlp.called(function)[0])
    if layer is not None:
        return checkpoint(_balanced(_moe.Region(layer, function)), *args, name="moe", context=_tracker_states)
    mlp, keywords = _mlp.called(function)
    in_one = _mlp.why_not(mlp, args, keywords)
    if in_one is None:
        return _mlp.checkpoint(mlp, *args, keywords, _tracker_states, _flagged)
    to_the_end = _mlp.leaves_hooks_open(mlp)
    _log.once(f"{type(mlp).__name__} {in_one}, so recoup recomputes it in one part, "
              f"{'to its end, because of hooks' if to_the_end else 'up to what fc2 saves'}")
    return checkpoint(_balanced(function), *args, name="mlp", context=_tracker_states, early_stop=not to_the_end)


@contextlib.contextmanager
def _flagged():
    """Megatron's own flag for checkpoints is set."""
    from megatron.core.tensor_parallel import random

    if not hasattr(random, "is_checkpointing") or random.is_checkpointing():
        yield
        return
    random._set_checkpointing()
    try:
        yield
    finally:
        random._unset_checkpointing()


def _balanced(function):
    """A function that leaves Megatron's NVTX ranges as it found them, also where the recompute ends in
    the middle of it."""
    from megatron.core import utils

    def balanced(*args, **kwargs):
        ranges = getattr(utils, "_nvtx_range_messages", None)
        depth = len(ranges) if ranges is not None else 0
        try:
            with _flagged():
                return function(*args, **kwargs)
        finally:
            while ranges is not None and len(ranges) > depth:
                utils.nvtx_range_pop(ranges[-1])
    return balanced


def _tracker_states():
    """For checkpoint(context=...): reruns draw from Megatron's RNG tracker as the first run did."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    states = get_cuda_rng_tracker().get_states()

    @contextlib.contextmanager
    def restored():
        before = get_cuda_rng_tracker().get_states()
        get_cuda_rng_tracker().set_states(states)
        try:
            yield
        finally:
            get_cuda_rng_tracker().set_states(before)

    return restored
