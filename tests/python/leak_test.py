"""Nothing that a region keeps refers to its results: live tensors over 50 steps, beside
torch.utils.checkpoint.

The results were once in the recompute's closure: a dict of which a branch was unused kept its graph, and
the graph the closure, 3 tensors a step for ever."""
import collections
import dataclasses
import gc

import pytest
import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from recoup import checkpoint

STEPS = 50
linear, gate = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
Pair = collections.namedtuple("Pair", "hidden router")


@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    router: torch.Tensor


class Opaque:
    def __init__(self, hidden, router):
        self.hidden, self.router = hidden, router


def branches(h):
    return torch.tanh(linear(h)), torch.softmax(gate(h), -1)


def make_dict(h):
    return dict(zip(("hidden", "router"), branches(h)))


def nested(h):
    hidden, router = branches(h)
    return hidden, ({"router": [router]}, None)


def hidden_of(out):
    if isinstance(out, torch.Tensor):
        return out
    if isinstance(out, dict):
        return out["hidden"]
    return out[0] if isinstance(out, (tuple, list)) else out.hidden


SHAPES = {
    "tensor": lambda h: torch.tanh(linear(h)),
    "tuple": branches,
    "list": lambda h: list(branches(h)),
    "dict": make_dict,
    "nested": nested,
    "namedtuple": lambda h: Pair(*branches(h)),
    "dataclass": lambda h: Output(*branches(h)),
    "an object": lambda h: Opaque(*branches(h)),
}


def live():
    gc.collect()
    return sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor))


def growth(step):
    step()
    before = live()
    for _ in range(STEPS):
        step()
    return max(0, live() - before)  # what earlier tests left may go meanwhile


def stock(function, *args):
    return torch_checkpoint(function, *args, use_reentrant=False)


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "skipped backward"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("call", [checkpoint, stock], ids=["ours", "stock"])
def test_results(call, shape, backward):
    def step():
        out = call(SHAPES[shape], torch.randn(4, 8, requires_grad=True))
        if backward:
            hidden_of(out).sum().backward()

    assert growth(step) == 0


@pytest.mark.parametrize("backward", [True, False], ids=["backward", "skipped backward"])
def test_a_dict_of_the_callers_that_gets_the_result(backward):
    """Stock checkpoint keeps every step's tensors where the backward is skipped."""
    def step():
        graph = {"x": torch.randn(4, 8, requires_grad=True)}
        graph["y"] = checkpoint(lambda h, g: torch.tanh(linear(h * g["x"])), graph["x"], graph)
        if backward:
            graph["y"].sum().backward()

    assert growth(step) == 0


def test_arguments_with_attributes_and_keywords():
    def step():
        x = torch.randn(4, 8, requires_grad=True)
        h = x.exp()
        h.tag = 1
        out = checkpoint(lambda t, *, other: {"hidden": (t * other).sin() * t.tag, "unused": t.exp()},
                         h, other=x)
        out["hidden"].sum().backward()

    assert growth(step) == 0


def test_errors_in_forward_and_recompute():
    def step():
        calls = []

        def forward(t):
            calls.append(1)
            h = t.exp()
            if len(calls) == fails_at:
                raise KeyError("here")
            return {"hidden": h.sin()}

        with pytest.raises(KeyError):
            out = checkpoint(forward, torch.randn(4, 8, requires_grad=True))
            out["hidden"].sum().backward()

    for fails_at in (1, 2):
        assert growth(step) == 0


def test_a_result_outlives_nothing_but_itself():
    """Without any garbage collection: reference counts alone free a step's tensors."""
    gc.collect()
    gc.disable()
    try:
        def count():
            return sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor))

        def step(shape):
            out = checkpoint(SHAPES[shape], torch.randn(4, 8, requires_grad=True))
            hidden_of(out).sum().backward()

        for shape in SHAPES:
            step(shape)
            before = count()
            for _ in range(5):
                step(shape)
            assert count() == before, shape
    finally:
        gc.enable()
