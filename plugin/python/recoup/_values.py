"""Taking the tensors out of a call's arguments, and putting others in their places.

Containers are PyTorch's (torch.utils._pytree: tuples, lists, dicts, namedtuples, what libraries have
registered there), and dataclasses; they are rebuilt, so that each recompute gets containers as they were
when the forward was called. Every other value is passed as it is.
"""
import copy
import dataclasses

import torch
from torch.utils import _pytree

# A tensor's place among values: the index of the tensor.
_Place = type("_Place", (int,), {})


class _Dataclass:
    """A dataclass among values: a copy without its fields, and the fields' values."""

    def __init__(self, instance, take):
        self.values = {}
        for field in dataclasses.fields(instance):
            if hasattr(instance, field.name):
                self.values[field.name] = getattr(instance, field.name)
        self.bare = copy.copy(instance)
        for name in self.values:
            object.__setattr__(self.bare, name, None)
        leaves, self.spec = _pytree.tree_flatten(self.values)
        self.values = [take(leaf) for leaf in leaves]

    def build(self, put):
        built = copy.copy(self.bare)
        values = _pytree.tree_unflatten([put(value) for value in self.values], self.spec)
        for name, value in values.items():
            object.__setattr__(built, name, value)  # frozen ones too
        return built


class _Look:
    """How a tensor looks from Python: its type and attributes. Not the tensor: an input with history
    would keep the graph before the region, which the engine does not need. A parameter has none, and
    lives as long as its module does: it is kept, and passed, as it is."""

    def __init__(self, tensor):
        self.parameter = tensor if isinstance(tensor, torch.nn.Parameter) else None
        self.type = type(tensor)
        # A wrapper's inner tensors are the engine's to keep.
        inner = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
        self.attributes = {name: value for name, value in tensor.__dict__.items() if name not in inner}

    def give(self, leaf):
        if self.parameter is not None:
            return self.parameter
        if type(leaf) is not self.type:
            try:
                leaf.__class__ = self.type
            except TypeError:  # another layout of its instances
                leaf = leaf.as_subclass(self.type)
        for name, value in self.attributes.items():
            leaf.__dict__.setdefault(name, value)
        return leaf


class Arguments:
    """A call's arguments without their tensors, which are in `tensors`, each once."""

    def __init__(self, args, kwargs):
        self.tensors = []
        self._index = {}
        leaves, self._spec = _pytree.tree_flatten((args, kwargs))
        self._values = [self._take(leaf) for leaf in leaves]
        self._looks = [None if type(t) is torch.Tensor and not t.__dict__ else _Look(t)
                       for t in self.tensors]
        del self._index

    def release(self):
        """The tensors, which are not held here any more."""
        tensors, self.tensors = self.tensors, None
        return tensors

    def _take(self, leaf):
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in self._index:
                self._index[id(leaf)] = len(self.tensors)
                self.tensors.append(leaf)
            return _Place(self._index[id(leaf)])
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            return _Dataclass(leaf, self._take)
        return leaf

    def rebuild(self, tensors):
        """(args, kwargs) with these tensors in the places of the call's own."""
        tensors = [t if look is None else look.give(t) for t, look in zip(tensors, self._looks)]

        def put(value):
            if type(value) is _Place:
                return tensors[value]
            return value.build(put) if type(value) is _Dataclass else value

        return _pytree.tree_unflatten([put(value) for value in self._values], self._spec)
