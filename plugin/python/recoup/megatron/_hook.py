"""Calls our functions on Megatron's modules as soon as each has been imported, whenever that is."""
import importlib
import importlib.abc
import importlib.util
import sys

_CORE = "megatron.core."
# Megatron's module -> the module of ours whose `installed` is called with it.
_WHEN = {
    _CORE + "transformer.transformer_config": "_config",
    _CORE + "transformer.transformer_layer": "_layers",
    _CORE + "transformer.transformer_block": "_layers",
    _CORE + "transformer.multi_token_prediction": "_layers",
    _CORE + "models.hybrid.hybrid_block": "_layers",
    _CORE + "models.hybrid.hybrid_model": "_layers",
    _CORE + "ssm.mamba_block": "_layers",
    _CORE + "models.mamba.mamba_model": "_layers",
    _CORE + "tensor_parallel": "_engine",
    "megatron.training.arguments": "_arguments",
    "megatron.training.yaml_arguments": "_arguments",
}


class _Loader(importlib.abc.Loader):
    """Another loader, and then ours."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        _installed(module)

    def __getattr__(self, name):  # get_source, get_filename and what else a loader may have
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Megatron's modules by all the other finders."""

    def __init__(self):
        self._looking = set()

    def find_spec(self, name, path=None, target=None):
        if name not in _WHEN or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.discard(name)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Loader(spec.loader)
        return spec


def _installed(module):
    ours = importlib.import_module("." + _WHEN[module.__name__], __package__)
    ours.installed(module)


def install():
    """Waits for Megatron; what is imported already is changed now. Once is enough.

    RuntimeError where a model was built before, and the environment says that recoup decides.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in _WHEN:
        if name in sys.modules:
            _installed(sys.modules[name])
    if _CORE + "transformer.transformer_layer" in sys.modules:
        from ._layers import refuse_models_built_before

        refuse_models_built_before()
