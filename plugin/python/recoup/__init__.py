"""recoup: per-layer recompute of MLP activations.

    recoup.checkpoint(function, *args, **kwargs)   the engine, for any function of tensors (needs torch)
    recoup.checkpoint_parts(part, rest, *tensors)  the same where only the first part is ever run again
    recoup.recomputing()                           within such a function: whether it is being recomputed
    recoup.apply(model, mlp_num_layers=12)         chosen MLPs of any PyTorch model (needs torch)
    recoup.Policy("my trainer", "x.yaml", 24)      which layers recompute what (needs no torch)

Everything is loaded when it is first used: importing this imports neither torch nor a library.
"""
import importlib

_NAMES = {"_checkpoint": ["checkpoint", "checkpoint_parts", "recomputing"], "_apply": ["apply", "remove"],
          "policy": ["Policy", "Decision", "RecoupError", "known_modules", "environment"],
          "_library": ["library", "plugin_path", "cmake_prefix"]}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_WHERE[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"recoup.{name} needs PyTorch, which is not installed here; recoup.Policy works "
                          "without it") from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_WHERE})
