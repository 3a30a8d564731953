"""What a TransformerConfig recomputes, and where: the job's options and recoup's, merged.

The job says which modules; recoup adds modules and limits to layers. For each module one speaks, and the
log names the other: the environment's RECOUP_RECOMPUTE_MLP_NUM_LAYERS before the config's own
recompute_<module>_num_layers or _layers, and those before recoup's file. A config that recomputes whole
layers, or has another contradicting option, keeps it, with a warning.
"""
import os
from typing import FrozenSet, Optional

from . import _fields, _host, _log, _source

CONFIGURED = "_recoup_configured"


def check_values(options) -> None:
    """Errors for per-layer options that are wrong whatever stands beside them."""
    for module in _host.limitable():
        number, layers = (getattr(options, field, None) for field in _fields.limits(module))
        option = _flag(module)
        if number is not None and layers is not None:
            raise ValueError(f"{option}-num-layers and {option}-layers say the same; give one of the two")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise ValueError(f'{option}-num-layers must be an integer >= 1, not "{number}"')
        if number is not None and number < 1:
            raise ValueError(f"{option}-num-layers must be >= 1")
    scope = getattr(options, "recompute_layer_scope", None)
    if scope is not None and scope not in _fields.SCOPES:
        raise ValueError(f"--recompute-layer-scope must be one of {', '.join(_fields.SCOPES)}, "
                         f"not {scope!r}")


def check(options, granularity, modules) -> None:
    """Megatron-style errors for the per-layer options of a config or of the command line."""
    for module in _host.limitable():
        for field in _fields.limits(module):
            if getattr(options, field, None) is None:
                continue
            option = "--" + field.replace("_", "-")
            if granularity != "selective":
                raise ValueError(f"{option} requires --recompute-granularity selective")
            if module not in (modules or ()):
                raise ValueError(f'{option} requires "{module}" in --recompute-modules')
    check_values(options)


def _flag(module) -> str:
    return f"--recompute-{module.replace('_', '-')}"


def configure(config) -> None:
    """Gives a config recoup's options, before its own __post_init__ looks at them."""
    from ._numbers import dense_layers

    setattr(config, CONFIGURED, True)
    dense = dense_layers(config)
    counts = {} if dense is None else {"num_mlps": sum(dense)}
    source = _source.from_recoup(config, **counts)
    if source:
        check_values(config)
        for text, is_warning in source.notices:
            _log.once(text, _log.logging.WARNING if is_warning else _log.logging.INFO)
        if source.full:
            _configure_full(config, source)
        elif source.modules:
            if "mlp" in source.modules and counts.get("num_mlps") == 0:
                _log.once(f"every layer of the {_model(config)} is an MoE layer: no MLP is recomputed as mlp",
                          _log.logging.WARNING)
            _configure_selective(config, source)
    modules = config.recompute_modules
    if modules is None and config.recompute_granularity == "selective":
        modules = ["core_attn"]  # Megatron's default
    check(config, config.recompute_granularity, modules)
    job = _source.from_job(config, **counts)
    if job:
        for text, is_warning in job.notices:
            _log.once(text, _log.logging.WARNING if is_warning else _log.logging.INFO)


def _model(config) -> str:
    return f"{type(config).__name__} of {config.num_layers} layers"


def _keeps(config, source, what) -> None:
    _log.once(f"the {_model(config)} sets {what} itself and keeps it; {source.name} is set aside for it",
              _log.logging.WARNING)


def _configure_full(config, source) -> None:
    wanted = {"recompute_granularity": "full", "recompute_method": source.full.method,
              "recompute_num_layers": source.full.num_layers}
    own = {field: getattr(config, field) for field in wanted}
    if own["recompute_granularity"] is None:
        for field, value in wanted.items():
            setattr(config, field, value)
        if source.distribute:
            config.distribute_saved_activations = True
        _log.once(f"{source.name}: the {_model(config)} recomputes whole layers "
                  f"({source.full.method}, {source.full.num_layers})")
    elif own != wanted:
        _keeps(config, source, ", ".join(f"{k}={v}" for k, v in own.items() if v is not None))


def _configure_selective(config, source) -> None:
    if source.distribute:
        raise ValueError(f"{source.name}: distribute_saved_activations requires --recompute-granularity "
                         "full: Megatron-LM distributes the inputs of whole layers only")
    if config.recompute_granularity not in (None, "selective"):
        _keeps(config, source, f"recompute_granularity={config.recompute_granularity}")
        return
    # Modules without a granularity recompute nothing, and go on doing so.
    modules = [] if config.recompute_granularity is None else list(
        ["core_attn"] if config.recompute_modules is None else config.recompute_modules)
    somewhere = frozenset().union(*(_layers_of(config, source, n) for n in range(1, config.num_layers + 1)))
    for module in source.modules:
        own = [f for f in _fields.limits(module) if getattr(config, f) is not None]
        if module in somewhere:
            if module not in modules:
                modules.append(module)
        elif module in modules and (not own or _environment_decides(module)):
            modules.remove(module)
            _log.once(f"{source.name}: no layer of the {_model(config)} recomputes {module}")
        for field in own:
            decides, other = ((f"{_source.VARIABLE}={os.environ[_source.VARIABLE]}",
                               f"{field}={getattr(config, field)} of the job")
                              if _environment_decides(module) else
                              (f"{field}={getattr(config, field)} of the job", source.name))
            _log.once(f"{decides} decides which layers recompute {module}; {other} is set aside")
            if _environment_decides(module):
                setattr(config, field, None)
    if config.recompute_granularity is None and not modules:
        return
    config.recompute_granularity = "selective"
    config.recompute_modules = modules
    _log.once(f"{source.name}: the {_model(config)} recomputes {', '.join(modules) or 'nothing'}")


def _layers_of(config, source, number):
    # By stage: the number is one of a stage that has as many layers as the model at most.
    return source.layer(number, 0, number)


def _environment_decides(module) -> bool:
    return module == "mlp" and bool(os.environ.get(_source.VARIABLE))


def decides(config) -> bool:
    """Whether anything limits this config's modules to layers, so that its layers must be asked."""
    return bool(config.recompute_granularity == "selective"
                and (_source.from_job(config) or _selective(config)))


def has_something_to_say(config) -> bool:
    """Whether configure() would have changed this config."""
    source = _source.from_recoup(config)
    return bool(source and (source.modules or source.full))


def _selective(config):
    source = _source.from_recoup(config)
    return source if source and source.modules else None


def of_layer(config, number: Optional[int], is_mtp: bool = False, stage_offset: int = 0,
             **counts) -> FrozenSet[str]:
    """The modules that one layer recomputes, of those that it has. number: global, 1-indexed."""
    mlp_number = counts.pop("mlp_number", None)
    source, job = _source.from_recoup(config, **counts), _source.from_job(config, **counts)

    def limited_by(module):
        own = job if any(getattr(config, f) is not None for f in _fields.limits(module)) else None
        recoups = source if source and module in source.modules else None
        return recoups if _environment_decides(module) and recoups else own or recoups

    def recomputes(module):
        by = limited_by(module)
        if by is None:
            return True
        if is_mtp:
            return module in (config.recompute_mtp_modules or ()) or module in by.beyond()
        return module in by.layer(number, stage_offset, mlp_number)

    return frozenset(module for module in config.recompute_modules or () if recomputes(module))
