"""A parameter that a torch.autograd.Function saves comes back in backward as the very object, with what hangs on it."""
import gc

import pytest
import torch
import torch.nn.functional as F

from recoup import checkpoint, checkpoint_parts


class Linear(torch.autograd.Function):
    """As Megatron's with gradient accumulation fusion: adds the weight's gradient to its main_grad."""
    seen = []

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        Linear.seen.append(weight)
        weight.main_grad.add_(gradient.t() @ x)
        weight.grad_added_to_main_grad = True
        return gradient @ weight, None


@pytest.fixture
def weights():
    torch.manual_seed(0)
    fc1, fc2 = torch.nn.Parameter(torch.randn(32, 8)), torch.nn.Parameter(torch.randn(8, 32))
    for w in (fc1, fc2):
        w.main_grad = torch.zeros_like(w)
    Linear.seen.clear()
    return fc1, fc2


def main_grads(weights, forward):
    for w in weights:
        w.main_grad.zero_()
    torch.manual_seed(1)
    x = torch.randn(4, 8, requires_grad=True)
    gradient, = torch.autograd.grad(forward(x).sum(), x)
    return [gradient, *(w.main_grad.clone() for w in weights)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


FORWARDS = {
    "one part": lambda fc1, fc2, x: checkpoint(lambda t: Linear.apply(F.gelu(Linear.apply(t, fc1)), fc2), x),
    "weights as arguments": lambda fc1, fc2, x: checkpoint(
        lambda t, u, v: Linear.apply(F.gelu(Linear.apply(t, u)), v), x, fc1, fc2),
    "two parts": lambda fc1, fc2, x: checkpoint_parts(
        lambda t: F.gelu(Linear.apply(t, fc1)), lambda h: Linear.apply(h, fc2), x),
    "nested": lambda fc1, fc2, x: checkpoint(
        lambda t: checkpoint(lambda u: Linear.apply(F.gelu(Linear.apply(u, fc1)), fc2), t * 1.0), x),
}


@pytest.mark.parametrize("how", FORWARDS)
def test_the_function_finds_the_parameter_itself(weights, how):
    fc1, fc2 = weights
    plain = main_grads(weights, lambda x: Linear.apply(F.gelu(Linear.apply(x, fc1)), fc2))
    Linear.seen.clear()
    assert same(plain, main_grads(weights, lambda x: FORWARDS[how](fc1, fc2, x)))
    assert len(Linear.seen) == 2 and Linear.seen[0] is fc2 and Linear.seen[1] is fc1
    assert fc1.grad_added_to_main_grad and fc2.grad_added_to_main_grad


def test_a_parameter_modified_before_backward_is_still_an_error(weights):
    fc1, fc2 = weights
    x = torch.randn(4, 8, requires_grad=True)
    y = checkpoint(lambda t: Linear.apply(F.gelu(Linear.apply(t, fc1)), fc2), x)
    with torch.no_grad():
        fc2.add_(1)
    with pytest.raises(RuntimeError, match="modified by an in.?place operation"):
        y.sum().backward()


def test_another_storage_under_it_is_lawful(weights):
    fc1, fc2 = weights
    plain = main_grads(weights, lambda x: Linear.apply(F.gelu(Linear.apply(x, fc1)), fc2))

    def forward(x):
        y = FORWARDS["one part"](fc1, fc2, x)
        for w in weights:
            w.data = w.data.clone()
        return y

    assert same(plain, main_grads(weights, forward))


@pytest.mark.parametrize("nested", [False, True])
def test_an_input_without_grad_is_the_very_object_where_the_region_keeps_it(nested):
    seen = []

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale):
            ctx.save_for_backward(scale)
            return x * scale

        @staticmethod
        def backward(ctx, gradient):
            scale, = ctx.saved_tensors
            seen.append(scale)
            return gradient * scale, None

    x, scale = torch.ones(2, requires_grad=True), torch.full((2,), 3.0)
    if nested:  # the outer region drops what it has made, and the inner one's input with it
        y = checkpoint(lambda t: checkpoint(Scale.apply, t, scale * 1), x)
    else:
        y = checkpoint(Scale.apply, x, scale)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], scale)
    assert torch.equal(seen[0], scale) and (seen[0] is scale) != nested


def test_hooks_of_the_functions_own_are_left_alone(weights):
    """Those pushed within a region, which hand each tensor out once."""
    fc1, fc2 = weights
    store, taken = {}, []

    def pack(t):
        store[len(store)] = t
        return len(store) - 1

    def unpack(key):
        taken.append(key)
        return store[key]

    def forward(t):
        h = F.gelu(Linear.apply(t, fc1))
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return h.sin()

    x = torch.randn(4, 8, requires_grad=True)
    y = checkpoint(forward, x)
    assert taken == []
    y.sum().backward()
    assert Linear.seen[0] is fc1


def test_nothing_is_kept_alive(weights):
    for step in range(8):
        if step == 2:
            gc.collect()
            before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        w = torch.nn.Parameter(torch.randn(8, 8))
        w.main_grad = torch.zeros_like(w)
        y = checkpoint(lambda t: Linear.apply(Linear.apply(t, w).sin(), w), torch.randn(4, 8, requires_grad=True))
        if step % 2:
            y.sum().backward()
        Linear.seen.clear()
        del y, w
    gc.collect()
    assert sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()) <= before
