"""recoup's options on Megatron's own command line."""
import argparse
import functools
import sys

from . import _fields, _plan


def installed(module) -> None:
    if module.__name__.endswith("yaml_arguments"):
        _replace(module, "core_config_from_args", _with_our_fields)
        return
    _replace(module, "add_megatron_arguments", _adding)
    _replace(module, "validate_args", _checking)


def _replace(module, name, wrapping) -> None:
    """Also where somebody has imported the name already."""
    old = getattr(module, name, None)
    if old is None or hasattr(old, "recoup"):
        return
    new = functools.wraps(old)(wrapping(old))
    new.recoup = True
    for other in list(sys.modules.values()):
        if getattr(other, "__dict__", {}).get(name) is old:
            setattr(other, name, new)


def _adding(add_megatron_arguments):
    def add(parser):
        parser = add_megatron_arguments(parser)
        group = parser.add_argument_group(
            "recoup", "which layers recompute the modules of --recompute-modules")
        taken = {option for action in parser._actions for option in action.option_strings}
        for name, (kind, text) in _fields.described().items():
            option = "--" + name.replace("_", "-")
            if option in taken:
                continue
            how = {"type": _integer} if "int" in str(kind) else {"type": str}
            if "List" in str(kind):
                how["nargs"] = "*"
            if name == "recompute_layer_scope":
                how["choices"] = _fields.SCOPES
            group.add_argument(option, default=None, help=text.replace("%", "%%"), **how)
        return parser
    return add


def _integer(text):
    """An error of the command line with the words of all others."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be an integer >= 1, not "{text}"') from None


def _checking(validate_args):
    def validate(args, defaults={}):
        given = {key: value for key, value in defaults.items() if getattr(args, key, None) is None}
        granularity = getattr(args, "recompute_granularity", None) or given.get("recompute_granularity")
        if getattr(args, "recompute_activations", False):
            granularity = granularity or "selective"
        if not _decided_elsewhere(args):
            modules = getattr(args, "recompute_modules", None)
            if modules is None and granularity == "selective":
                modules = ["core_attn"]
            _plan.check(args, granularity, modules)
        return validate_args(args, defaults)
    return validate


def _decided_elsewhere(args) -> bool:
    """Whether recoup's file or environment adds to these options before the config is checked."""
    import os

    return bool(getattr(args, "recoup_config", None) or os.environ.get("RECOUP_CONFIG")
                or os.environ.get("RECOUP_RECOMPUTE_MLP_NUM_LAYERS"))


def _with_our_fields(core_config_from_args):
    """A job's YAML need not name our fields."""
    def build(args, *rest, **keywords):
        for name in _fields.names():
            if not hasattr(args, name):
                setattr(args, name, None)
        return core_config_from_args(args, *rest, **keywords)
    return build
