"""recompute_<module>_num_layers: only the first N layers recompute a module of recompute_modules.

Each layer reads its own view of the config (recoup_view.py). `python -m recoup.megatron`, where it runs on
a patched Megatron, decides in place of this file.
"""
import logging
import os
import sys

from megatron.core.transformer import recoup_view
from megatron.core.utils import log_single_rank

logger = logging.getLogger(__name__)

VARIABLE = "RECOUP_RECOMPUTE_MLP_NUM_LAYERS"


def modules(config) -> tuple:
    """The modules that can be limited: those whose field the patch has added."""
    return tuple(name[len("recompute_"):-len("_num_layers")] for name in type(config).__dataclass_fields__
                 if name.startswith("recompute_") and name.endswith("_num_layers")
                 and name != "recompute_num_layers")


def _limit(config, module):
    return getattr(config, f"recompute_{module}_num_layers")


def configure(config) -> None:
    """Before the config's own checks: the environment's N, then the checks of the fields."""
    if hasattr(config, "_recoup_configured"):
        return  # recoup's run-time mode has decided
    if os.environ.get("RECOUP_CONFIG"):
        log_single_rank(logger, logging.WARNING,
                        "RECOUP_CONFIG is not read by a patched Megatron-LM; start the job by "
                        "`-m recoup.megatron` for it")
    _check_values(config)
    if os.environ.get(VARIABLE):
        _configure_from_environment(config, os.environ[VARIABLE])
    allowed = config.recompute_modules
    if allowed is None and config.recompute_granularity == "selective":
        allowed = ["core_attn"]  # Megatron's default
    for module in modules(config):
        if _limit(config, module) is None:
            continue
        option = f"--recompute-{module.replace('_', '-')}-num-layers"
        if config.recompute_granularity != "selective":
            raise ValueError(f"{option} requires --recompute-granularity selective")
        if module not in (allowed or ()):
            raise ValueError(f'{option} requires "{module}" in --recompute-modules')
        if _limit(config, module) > config.num_layers:
            log_single_rank(logger, logging.WARNING, f"{option}: names layer {_limit(config, module)}, but "
                            f"there are {config.num_layers}")


def _check_values(config) -> None:
    for module in modules(config):
        limit, option = _limit(config, module), f"--recompute-{module.replace('_', '-')}-num-layers"
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise ValueError(f"{option} must be an integer >= 1, not {limit!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"{option} must be >= 1")


def _configure_from_environment(config, text) -> None:
    """The quick hack: mlp in the first N layers beside whatever the job recomputes; 0 takes it out."""
    try:
        layers = int(text)
    except ValueError:
        layers = -1
    if layers < 0:
        raise ValueError(f"environment variable {VARIABLE}: must be an integer >= 0 (0: no layer), "
                         f'not "{text}"')
    if config.recompute_granularity not in (None, "selective"):
        log_single_rank(logger, logging.WARNING, f"{VARIABLE}={text} is set aside for a config with "
                        f"recompute_granularity={config.recompute_granularity}")
        return
    own = config.recompute_mlp_num_layers
    log_single_rank(logger, logging.INFO, f"{VARIABLE}={text} decides which layers recompute their MLP"
                    + (f"; recompute_mlp_num_layers={own} of the job is set aside" if own else ""))
    listed = [] if config.recompute_granularity is None else list(
        ["core_attn"] if config.recompute_modules is None else config.recompute_modules)
    config.recompute_mlp_num_layers = layers or None
    if layers == 0 and config.recompute_granularity is None:
        return
    config.recompute_granularity = "selective"
    config.recompute_modules = [m for m in listed if m != "mlp" or layers] + (
        ["mlp"] if layers and "mlp" not in listed else [])


def of_layer(config, layer, is_mtp_layer=False):
    """A layer's own view of its config; the config itself where no module is limited."""
    limited = {module: _limit(config, module) for module in modules(config)
               if _limit(config, module) is not None}
    if recoup_view.is_view(config) or config.recompute_granularity != "selective" or not limited:
        return config
    said = []

    def decide():
        number = vars(layer).get("layer_number", sys.maxsize)
        # A multi-token-prediction layer comes after the last layer, however it is numbered.
        chosen = [m for m in config.recompute_modules or ()
                  if m not in limited or (number <= limited[m] and not is_mtp_layer)]
        if "mlp" in (config.recompute_modules or ()) and "mlp" not in chosen and not said:
            said.append(number)
            name = "MTP layer" if is_mtp_layer else "Layer"
            log_single_rank(logger, logging.INFO, f"{name} {number}: recompute_mlp=False")
        return chosen

    return recoup_view.of(config, recoup_view.Decision(config, decide),
                          tuple(f"recompute_{module}_num_layers" for module in modules(config)))
