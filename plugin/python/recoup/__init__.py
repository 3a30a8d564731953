"""recoup: per-layer recompute of MLP activations.

    recoup.checkpoint(function, *args, **kwargs)   the engine, for any function of tensors (needs torch)
    recoup.Policy("my trainer", "x.yaml", 24)      which layers recompute what (needs no torch)

Everything is loaded when it is first used: importing this imports neither torch nor a library.
"""
import importlib

_WHERE = {"checkpoint": "_checkpoint", "Policy": "policy", "Decision": "policy",
          "RecoupError": "policy", "known_modules": "policy", "library": "_library"}
__all__ = sorted(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_WHERE})
