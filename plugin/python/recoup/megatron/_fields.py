"""recoup's options as fields of Megatron's TransformerConfig."""
import dataclasses
import functools
import inspect
from typing import List, Optional

from . import _host

SCOPES = ("global", "stage", "mlp")


def _described() -> dict:
    """{field: (type, what it means)}"""
    fields = {}
    for module in _host.limitable():
        fields[f"recompute_{module}_num_layers"] = Optional[int], (
            f"When using selective checkpointing with '{module}' in recompute_modules, only apply "
            f"{module} recomputation to the first N layers (1-indexed). If None, it applies to all layers.")
        fields[f"recompute_{module}_layers"] = Optional[str], (
            f"The layers that recompute {module}, in place of the first N: such as '1-8,12', '!last', "
            "'every 2'; see recoup's README.")
    fields["recompute_layer_scope"] = Optional[str], (
        "What recompute_*_num_layers and recompute_*_layers count: layers of the whole model (global), of "
        "the pipeline stage (stage), or MLPs (mlp, for hybrid models).")
    fields["recompute_mtp_modules"] = Optional[List[str]], (
        "Modules that multi-token-prediction layers recompute although recompute_*_num_layers or "
        "recompute_*_layers limits them to other layers.")
    fields["recoup_config"] = Optional[str], (
        "recoup's YAML file for this model, in place of the environment's RECOUP_CONFIG; 'off': recoup "
        "leaves this model alone.")
    return fields


@functools.lru_cache(maxsize=None)
def _all() -> dict:
    """{name: dataclasses.Field}, made by dataclasses."""
    made = dataclasses.make_dataclass("Recoup", [
        (name, kind, dataclasses.field(default=None, metadata={"argparse_meta": {"help": text}}))
        for name, (kind, text) in _described().items()])
    return {field.name: field for field in dataclasses.fields(made)}


def names() -> tuple:
    return tuple(_all())


def described() -> dict:
    return _described()


def limits(module: str) -> tuple:
    return f"recompute_{module}_num_layers", f"recompute_{module}_layers"


def all_limits() -> tuple:
    """The fields that limit modules to layers, and with them the scope that they count in."""
    return tuple(name for name in names() if name.startswith("recompute_"))


def add(config_class) -> None:
    """Makes the options fields of a dataclass and of those derived from it, made already or not yet."""
    new = [field for name, field in _all().items() if name not in config_class.__dataclass_fields__]
    for cls in _family(config_class):
        for field in new:
            cls.__dataclass_fields__.setdefault(field.name, field)
        if "__init__" in vars(cls):
            cls.__init__ = _taking(cls.__init__, [field.name for field in new])
    for field in new:
        setattr(config_class, field.name, None)
        config_class.__annotations__[field.name] = field.type


def _family(cls):
    result = [cls]
    for derived in cls.__subclasses__():
        result += [c for c in _family(derived) if c not in result]
    return [c for c in result if "__dataclass_fields__" in vars(c)]


def _taking(init, new):
    """An __init__ that takes the new fields too."""
    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        for name in new:
            if name in kwargs:
                setattr(self, name, kwargs.pop(name))
        init(self, *args, **kwargs)

    signature = inspect.signature(init)
    parameters = list(signature.parameters.values())
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
    parameters[at:at] = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
                         for name in new if name not in signature.parameters]
    wrapped.__signature__ = signature.replace(parameters=parameters)
    return wrapped


def off(value) -> bool:
    return value == "off"
