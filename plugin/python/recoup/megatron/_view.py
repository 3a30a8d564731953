"""A layer's own view of its model's config: all of it, but for what the layer recomputes.

The view shares the config's __dict__, so that everything else that is read, or set later, is the config's.
`recompute_modules` is the layer's, whoever asks it and whenever, because decisions live on the layer.

Alone in its file: the patch adds it to Megatron as it is.
"""
import copy
import copyreg
import functools


class Decision:
    """What one layer recomputes: asked of `decide` until `freeze`, which is when the layer is built."""

    def __init__(self, whole, decide):
        self.whole, self._decide, self._modules = whole, decide, None

    @property
    def modules(self) -> list:
        if self._modules is not None:
            return self._modules
        chosen = self._decide()
        return [module for module in self.whole.recompute_modules or () if module in chosen]

    def set(self, modules) -> None:
        self._modules = modules

    def freeze(self) -> None:
        self._modules, self._decide = self.modules, None


class _LayerConfig:
    """What a view adds to the class of its config."""

    __slots__ = ()

    @property
    def recompute_modules(self):
        return self.recoup_decision.modules

    @recompute_modules.setter
    def recompute_modules(self, modules):
        self.recoup_decision.set(modules)

    def __copy__(self):
        twin = copy.copy(self.recoup_decision.whole)
        return of(twin, _frozen(twin, self.recompute_modules), type(self).recoup_limits)

    def __deepcopy__(self, memo):
        twin = copy.deepcopy(self.recoup_decision.whole, memo)
        return of(twin, _frozen(twin, list(self.recompute_modules)), type(self).recoup_limits)

    def __reduce_ex__(self, _protocol):
        # A pickled layer config is a plain one that says what the layer recomputes: whoever reads it
        # needs no recoup for it.
        whole = self.recoup_decision.whole
        state = {**vars(whole), **{name: None for name in type(self).recoup_limits},
                 "recompute_modules": list(self.recompute_modules), **_OFF}
        return copyreg.__newobj__, (type(whole),), state


# A layer's list says it all: no limit of the model's is applied to it again.
_OFF = {"recoup_config": "off"}


def _frozen(whole, modules) -> Decision:
    decision = Decision(whole, None)
    decision.set(modules)
    return decision


def _constant(value):
    return property(lambda self: value, lambda self, _value: None)


@functools.lru_cache(maxsize=None)
def _class(config_class, limits):
    constants = {**{name: None for name in limits}, **_OFF}
    return type(config_class.__name__, (_LayerConfig, config_class), {
        "__slots__": ("recoup_decision",), "__module__": config_class.__module__,
        "__qualname__": config_class.__qualname__, "__doc__": config_class.__doc__,
        "recoup_limits": limits,
        # dataclasses.replace makes a plain config of the layer's.
        "__class__": property(lambda self: config_class),
        **{name: _constant(value) for name, value in constants.items()}})


def is_view(config) -> bool:
    return hasattr(type(config), "recoup_limits")


def of(whole, decision: Decision, limits: tuple):
    """A layer's view of the config `whole`; `limits`: the fields that limit modules to layers."""
    view = object.__new__(_class(type(whole), limits))
    object.__setattr__(view, "__dict__", vars(whole))
    object.__setattr__(view, "recoup_decision", decision)
    return view
