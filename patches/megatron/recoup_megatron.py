"""Selective recompute for a Megatron-LM that is not patched, and recoup's engine for one that is or not.

Without touching the installation: `import recoup_megatron` before the model is built, with
RECOUP_CONFIG=FILE.yaml (or RECOUP_RECOMPUTE_MLP_NUM_LAYERS=N) in the environment; or, with no change to
the job at all, PYTHONPATH=.../patches/megatron/autoload, which imports this as soon as Megatron is
imported. recoup's C++ policy then decides which layers recompute; the YAML's granularity and modules
become those of every TransformerConfig that does not set its own.

RECOUP_ENGINE=recoup (or use_engine()) runs the checkpoints of MLPs with recoup's C++ engine in place of
tensor_parallel.checkpoint: less time for each, and right also where the MLP has a bias.
"""
import contextlib
import functools
import importlib.util
import logging
import os

from recoup import Policy, checkpoint
from recoup._engine import engine

logger = logging.getLogger("recoup")

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


def use_engine():
    """Runs the checkpoints of dense MLPs with recoup's engine from now on."""
    from megatron.core import tensor_parallel
    from megatron.core.transformer.mlp import MLP

    megatrons = tensor_parallel.checkpoint
    if hasattr(megatrons, "recoup_replaces"):
        return
    engine()

    @functools.wraps(megatrons)
    def dispatch(function, distribute_saved_activations, *args):
        module = function.func if isinstance(function, functools.partial) else function
        if isinstance(module, MLP) and not distribute_saved_activations:
            return checkpoint(function, *args, name="mlp", context=_tracker_states)
        return megatrons(function, distribute_saved_activations, *args)

    dispatch.recoup_replaces = megatrons
    tensor_parallel.checkpoint = dispatch


@functools.lru_cache(maxsize=None)
def _policy(num_layers, logs):
    import torch.distributed as dist

    rank = dist.get_rank() if dist.is_initialized() else 0
    return Policy("megatron", num_layers=num_layers, rank=rank, modules="all",
                  log=logger.info if logs else lambda line: None)


class _LayerModules(list):
    """recompute_modules while one layer is constructed: what that layer recomputes."""

    def __init__(self, layer, num_layers):
        super().__init__()
        self.layer, self.num_layers = layer, num_layers

    def _decided(self):
        # Of each module the layer itself knows whether it has it.
        policy = _policy(self.num_layers, False)
        return policy.layer(self.layer.layer_number) | policy.layer(self.layer.layer_number, True)

    def __contains__(self, module):
        return module in self._decided()

    def __iter__(self):
        return iter(sorted(self._decided()))

    def __len__(self):
        return len(self._decided())

    def __deepcopy__(self, memo):
        return sorted(self._decided())


def _options(num_layers):
    """(granularity, modules, method, num_layers) that recoup's configuration means for Megatron."""
    policy = _policy(num_layers, False)
    numbers = range(1, num_layers + 1)
    modules = set().union(*(policy.layer(n, moe) for n in numbers for moe in (False, True)))
    if modules:
        return "selective", sorted(modules), None, None
    groups = [policy.full_group(n) for n in numbers]
    if not any(groups):
        return None, None, None, None
    if groups[0] > 1:
        return "full", None, "uniform", groups[0]
    return "full", None, "block", sum(groups)


def _configure(config):
    """Gives a TransformerConfig recoup's options; an error where it has others of its own."""
    granularity, modules, method, num_layers = _options(config.num_layers)
    if granularity is None:
        return
    wanted = dict(recompute_granularity=granularity, recompute_modules=modules,
                  recompute_method=method, recompute_num_layers=num_layers)
    for field, value in wanted.items():
        own = getattr(config, field)
        if own is None:
            setattr(config, field, value)
        elif (set(own) if isinstance(own, list) else own) != (
                set(value) if isinstance(value, list) else value):
            raise ValueError(f"recoup: its configuration means {field}={value}, but the job sets "
                             f"{field}={own}; set it in one place")


def install():
    """Lets the environment (see the top of this file) decide. Does nothing where it says nothing."""
    # No other part of Megatron here: this may run while Megatron is being imported.
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import TransformerLayer

    engine = os.environ.get("RECOUP_ENGINE", "megatron")
    if engine not in ("megatron", "recoup"):
        raise ValueError(f"RECOUP_ENGINE={engine}: allowed are megatron and recoup")
    decides = bool(os.environ.get("RECOUP_CONFIG")
                   or os.environ.get("RECOUP_RECOMPUTE_MLP_NUM_LAYERS"))
    if hasattr(TransformerLayer.__init__, "recoup") or not (decides or engine == "recoup"):
        return

    post_init, init = TransformerConfig.__post_init__, TransformerLayer.__init__

    @functools.wraps(post_init)
    def configured(self):
        _configure(self)
        post_init(self)

    @functools.wraps(init)
    def constructed(self, config, *args, **kwargs):
        from megatron.core.transformer.moe.moe_layer import MoELayer

        if engine == "recoup":
            use_engine()
        whole_model = config.recompute_modules
        if decides and config.recompute_granularity == "selective":
            config.recompute_modules = _LayerModules(self, config.num_layers)
        try:
            init(self, config, *args, **kwargs)
        finally:
            config.recompute_modules = whole_model
        if decides:
            _policy(config.num_layers, True).layer(self.layer_number, isinstance(self.mlp, MoELayer))

    constructed.recoup = True
    TransformerLayer.__init__ = constructed
    if decides:
        TransformerConfig.__post_init__ = configured


def _has_megatron():
    try:
        return importlib.util.find_spec("megatron.core") is not None
    except ModuleNotFoundError:
        return False


if _has_megatron():
    install()
