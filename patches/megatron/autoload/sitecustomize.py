"""Loads recoup_megatron as soon as a process imports Megatron's transformer layers.

Put this folder on PYTHONPATH; Python imports sitecustomize by itself at its start. Processes that never
import Megatron are left alone.
"""
import importlib.abc
import importlib.util
import os
import sys

_TRIGGER = "megatron.core.transformer.transformer_layer"


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the trigger with the other finders, and installs recoup once it has been executed."""

    def find_spec(self, name, path=None, target=None):
        if name != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def then_install(module):
            execute(module)
            here = os.path.dirname(os.path.abspath(__file__))
            sys.path += [os.path.join(here, ".."), os.path.join(here, "..", "..", "..", "plugin", "python")]
            import recoup_megatron

            recoup_megatron.install()

        spec.loader.exec_module = then_install
        return spec


sys.meta_path.insert(0, _AfterImport())
