"""torch.compile inside of regions and around them, beside the same model without regions.

A region under a compiled caller becomes torch.utils.checkpoint's, which the compiler knows: no graph
break. Everything here also runs with torch's dynamo in the process, which the other tests never load."""
import pytest
import torch
from torch import nn

import recoup
from recoup import checkpoint
from small_model import TOKENS, Model, bytes_kept, gradients

BACKENDS = ["eager", "aot_eager", "inductor"]


class MLP(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(8, 32), nn.Dropout(p), nn.Linear(32, 8)

    def forward(self, x):
        return self.fc2(self.drop(nn.functional.gelu(self.fc1(x))))


def plain(function, *args):
    return function(*args)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(case, call, backend, rows=(4,)):
    """Gradients after one step for each number of rows, of the inputs and of the case's parameters."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    parameters, step = case(call, backend)
    results = []
    for n in rows:
        torch.manual_seed(n)
        x = torch.randn(n, 8, requires_grad=True)
        step(x).pow(2).sum().backward()
        results.append(x.grad)
    return results + [p.grad for p in parameters]


def mlp_inside(call, backend):
    mlp = MLP()
    compiled = torch.compile(mlp, backend=backend)
    return list(mlp.parameters()), lambda x: call(compiled, x)


def activation_inside(call, backend):
    mlp = MLP()
    act = torch.compile(lambda h: nn.functional.gelu(h) * h, backend=backend)
    return list(mlp.parameters()), lambda x: call(lambda h: mlp.fc2(act(mlp.fc1(h))), x)


def repeated_layers(call, backend):
    """Layers share one compiled code, whose cache entries guards choose among."""
    mlps = [MLP() for _ in range(3)]
    mlps[1].fc1.requires_grad_(False)
    compiled = torch.compile(lambda m, h: m(h), backend=backend)

    def step(x):
        for m in mlps:
            x = x + call(lambda h, m=m: compiled(m, h), x)
        return x

    return [p for m in mlps for p in m.parameters()], step


def region_in_compiled(call, backend):
    mlp = MLP()
    return list(mlp.parameters()), torch.compile(lambda x: call(mlp, x.sin()).cos(), backend=backend)


def region_of_a_closure_in_compiled(call, backend):
    mlp, scale = MLP(), 3.0
    return list(mlp.parameters()), torch.compile(
        lambda x: call(lambda h: mlp.fc2(torch.tanh(mlp.fc1(h)) * scale), x * 2).cos(), backend=backend)


def graph_break_in_the_region(call, backend):
    mlp = MLP()

    def forward(h):
        h = mlp.fc1(h)
        torch._dynamo.graph_break()
        return mlp.fc2(nn.functional.gelu(h))

    return list(mlp.parameters()), torch.compile(lambda x: call(forward, x.sin()).cos(), backend=backend)


CASES = [mlp_inside, activation_inside, repeated_layers, region_in_compiled,
         region_of_a_closure_in_compiled, graph_break_in_the_region]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_equal_to_the_compiled_run_without_regions(case, backend):
    for ours, expected in zip(run(case, checkpoint, backend), run(case, plain, backend), strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_dynamic_shapes(case, backend):
    rows = (4, 6, 9, 4)
    for ours, expected in zip(run(case, checkpoint, backend, rows), run(case, plain, backend, rows), strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, expected)


def test_a_region_in_a_compiled_caller_breaks_no_graph():
    mlp = MLP()
    explained = torch._dynamo.explain(lambda x: checkpoint(mlp, x.sin()).cos())(torch.randn(4, 8))
    assert explained.graph_break_count == 0, explained.break_reasons


def test_an_applied_model_breaks_no_graph_and_keeps_as_little():
    model = Model(3)
    compiled = torch.compile(model, backend="aot_eager")
    gradients(compiled)
    before = bytes_kept(compiled)
    recoup.apply(model, mlp_num_layers=3)
    gradients(compiled)
    assert before - bytes_kept(compiled) >= 3 * 2 * (2 * 3 * 64 * 4)  # compiled code is not stale
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(TOKENS)
    assert explained.graph_break_count == 0, explained.break_reasons


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_dropout_draws_the_same_numbers_again(inside, backend):
    """The mask that the recompute draws is the forward's: d(out)/dx is out/x for a region that scales."""
    def scaled(x):
        return nn.functional.dropout(x * 2, 0.5) * x.detach().abs()

    if inside:
        compiled = torch.compile(scaled, backend=backend)
        step = lambda x: checkpoint(compiled, x)  # noqa: E731
    else:
        step = torch.compile(lambda x: checkpoint(scaled, x), backend=backend)
    torch.manual_seed(0)
    x = torch.rand(64, 8).add(0.5).requires_grad_()
    out = step(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad * x, out)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", ["model", "blocks", "blocks in place", "mlps in place"])
@pytest.mark.parametrize("order", ["apply first", "compile first", "compiled and run first"])
def test_apply(how, order, backend):
    def build():
        torch.manual_seed(0)
        return Model(3)

    def compiled(model):
        if how == "model":
            return torch.compile(model, backend=backend)
        for i, layer in enumerate(model.layers):
            if how == "blocks":
                model.layers[i] = torch.compile(layer, backend=backend)
            else:
                (layer if how == "blocks in place" else layer.mlp).compile(backend=backend)
        return model

    expected = gradients(compiled(build()))
    torch._dynamo.reset()
    model = build()
    if order == "apply first":
        recoup.apply(model, mlp_num_layers=2)
        model = compiled(model)
    else:
        model = compiled(model)
        if order == "compiled and run first":
            gradients(model)
        table = recoup.apply(model, mlp_num_layers=2)
        assert [row.recomputed for row in table] == [True, True, False]
    ours = gradients(model)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert recoup.remove(model) == 2
    for a, b in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_backward_called_in_a_compiled_function():
    """The frames that a recompute calls are not compiled, where its caller is."""
    mlp = MLP()

    def step(x):
        checkpoint(mlp, x).sum().backward()
        return x.grad

    def once(function):
        torch.manual_seed(0)
        return function(torch.randn(4, 8, requires_grad=True))

    torch.testing.assert_close(once(torch.compile(step, backend="eager")), once(step))
