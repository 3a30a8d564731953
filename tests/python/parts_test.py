"""recoup.checkpoint_parts: the part that follows is never run again, and nothing else changes."""
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F

import recoup


class Parts:
    """fc1 and gelu, or SwiGLU's two projections; then fc2, after a dropout or not. Counts its runs."""

    def __init__(self, swiglu=False, dropout=0.0):
        torch.manual_seed(2)
        self.weights = [torch.randn(8, 32, requires_grad=True) for _ in range(2)]
        self.down = torch.randn(32, 8, requires_grad=True)
        self.swiglu, self.dropout = swiglu, dropout
        self.first_runs = self.rest_runs = 0

    @property
    def parameters(self):
        return [*self.weights[:1 + self.swiglu], self.down]

    def first(self, x):
        self.first_runs += 1
        if self.swiglu:
            return F.silu(x @ self.weights[0]), x @ self.weights[1]
        return F.gelu(x @ self.weights[0])

    def rest(self, *h):
        self.rest_runs += 1
        return F.dropout((h[0] * h[1] if self.swiglu else h[0]) @ self.down, self.dropout)

    def plain(self, x):
        h = self.first(x)
        return self.rest(*h) if self.swiglu else self.rest(h)

    def gradients(self, forward, *sizes):
        torch.manual_seed(3)
        x = torch.randn(*sizes, requires_grad=True)
        y = forward(x)
        return [y.detach(), *torch.autograd.grad(y.pow(2).sum(), [x, *self.parameters])]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("sizes", [(16, 8), (3, 5, 8)])
def test_gradients_are_bit_equal_and_the_rest_runs_once(swiglu, sizes):
    parts = Parts(swiglu)
    plain = parts.gradients(parts.plain, *sizes)
    parts.first_runs = parts.rest_runs = 0
    assert same(plain, parts.gradients(lambda x: recoup.checkpoint_parts(parts.first, parts.rest, x), *sizes))
    # SwiGLU's rest multiplies the two and saves the product, which is its own: run again, with early stop.
    assert (parts.first_runs, parts.rest_runs) == (2, 2 if swiglu else 1)


def test_the_activation_alone():
    parts = Parts()
    plain = parts.gradients(parts.plain, 16, 8)
    fc1_runs = []

    def fc1(x):
        fc1_runs.append(1)
        return x @ parts.weights[0]

    assert same(plain, parts.gradients(
        lambda x: recoup.checkpoint_parts(F.gelu, lambda h: h @ parts.down, fc1(x)), 16, 8))
    assert len(fc1_runs) == 1


def test_a_rest_that_saves_its_own_is_run_again_and_that_is_said():
    """In a process of its own the warning is the first one."""
    parts = Parts(dropout=0.5)
    plain = parts.gradients(parts.plain, 16, 8)
    parts.rest_runs = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(plain, parts.gradients(lambda x: recoup.checkpoint_parts(parts.first, parts.rest, x), 16, 8))
    assert parts.rest_runs == 2


def test_inputs_keep_their_type_and_any_result_comes_back():
    parts = Parts()
    x = torch.nn.Parameter(torch.randn(4, 8))
    x.scale = 3.0
    seen = []

    def first(t):
        seen.append((type(t), t.scale))
        return parts.first(t) * t.scale

    y = recoup.checkpoint_parts(first, lambda h: {"y": [parts.rest(h)], "n": 7}, x)
    assert y["n"] == 7
    got = torch.autograd.grad(y["y"][0].sum(), [x, *parts.parameters])
    assert same(torch.autograd.grad(parts.rest(parts.first(x) * 3.0).sum(), [x, *parts.parameters]), got)
    assert seen == [(torch.nn.Parameter, 3.0)] * 2


def test_without_recompute_or_gradients_it_is_a_plain_call():
    parts = Parts(swiglu=True)
    plain = parts.gradients(parts.plain, 4, 8)
    parts.first_runs = 0
    assert same(plain, parts.gradients(
        lambda x: recoup.checkpoint_parts(parts.first, parts.rest, x, recompute=False), 4, 8))
    assert parts.first_runs == 1
    with torch.no_grad():
        y = recoup.checkpoint_parts(parts.first, parts.rest, torch.ones(2, 8))
    assert torch.equal(y, parts.plain(torch.ones(2, 8)))


@pytest.mark.parametrize("gives, named", [(lambda x: {"h": x}, "gave a dict"), (lambda x: (x, 3), "gave a int")])
def test_what_a_part_may_give(gives, named):
    with pytest.raises(TypeError, match="the part that is recomputed " + named):
        recoup.checkpoint_parts(gives, lambda *h: h[0], torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match="an argument is a int; all must be tensors"):
        recoup.checkpoint_parts(lambda x, n: x, lambda h: h, torch.ones(2, requires_grad=True), 3)


def test_errors_name_the_region_and_pass_through():
    parts = Parts()
    x = torch.randn(4, 8, requires_grad=True)
    y = recoup.checkpoint_parts(parts.first, parts.rest, x, name="layer 3 mlp")
    with torch.no_grad():
        parts.down.add_(1)
    with pytest.raises(RuntimeError, match="recoup: layer 3 mlp: .*modified by an in-place operation"):
        y.sum().backward()

    def fails(h):
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        recoup.checkpoint_parts(parts.first, fails, x)


def test_nothing_stays_alive():
    parts = Parts()
    for backward in (True, False):
        for step in range(6):
            if step == 1:
                gc.collect()
                before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
            y = recoup.checkpoint_parts(parts.first, lambda h: {"y": parts.rest(h), "unused": h.sum()},
                                        torch.randn(4, 8, requires_grad=True))
            if backward:
                torch.autograd.grad(y["y"].sum(), parts.parameters)
            del y
        gc.collect()
        assert sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()) <= before


def test_within_a_compiled_caller():
    torch._dynamo.reset()
    parts = Parts()
    plain = parts.gradients(parts.plain, 4, 8)

    @torch.compile(backend="aot_eager")
    def step(x):
        return recoup.checkpoint_parts(lambda t: F.gelu(t @ parts.weights[0]), lambda h: h @ parts.down, x)

    assert all(torch.allclose(a, b) for a, b in zip(plain, parts.gradients(step, 4, 8), strict=True))
