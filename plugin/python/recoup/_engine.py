"""The checkpoint engine's Python extension, loaded when it is first needed."""
import functools
import importlib.util

from ._library import library


@functools.lru_cache(maxsize=None)
def engine():
    """The module recoup_torch. ImportError, in one sentence, where there is none."""
    import torch  # noqa: F401  the extension links against it

    spec = importlib.util.spec_from_file_location("recoup_torch", library("recoup_torch.so"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
