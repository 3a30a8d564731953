"""The engine where PyTorch traces, nests tensors or compiles: what works with torch.utils.checkpoint works here."""
import pytest
import torch
import torch.nn.functional as F

from recoup import checkpoint


def gradients(forward, inputs, parameters):
    y = forward(*inputs)
    return [y.detach(), *torch.autograd.grad(y.pow(2).sum(), [*inputs, *parameters])]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_mlp_within_a_region(mlp, backend, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(mlp, backend=backend, dynamic=dynamic)
    for rows in (4, 6, 4):
        x = torch.randn(rows, 8, requires_grad=True)
        parameters = list(mlp.parameters())
        assert same(gradients(compiled, [x], parameters),
                    gradients(lambda t: checkpoint(compiled, t), [x], parameters))


def test_a_compiled_activation_within_a_region(mlp):
    torch._dynamo.reset()
    act = torch.compile(lambda t: F.gelu(t) * t, backend="aot_eager")
    x = torch.randn(4, 8, requires_grad=True)

    def forward(t):
        return mlp[2](act(mlp[0](t)))

    parameters = list(mlp.parameters())
    assert same(gradients(forward, [x], parameters), gradients(lambda t: checkpoint(forward, t), [x], parameters))


def test_a_region_does_not_recompile_a_warm_module(mlp):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(mlp, backend=counter)
    x = torch.randn(4, 8, requires_grad=True)
    compiled(x).sum().backward()
    frames = counter.frame_count
    for _ in range(3):
        checkpoint(compiled, x).sum().backward()
    assert counter.frame_count == frames


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(mlp, layout):
    a, b = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)

    def gradients_of(forward):
        y = forward(torch.nested.as_nested_tensor([a, b], layout=layout))
        return torch.autograd.grad(torch.nested.to_padded_tensor(y, 0.0).sum(), [a, b, *mlp.parameters()])

    assert same(gradients_of(mlp), gradients_of(lambda t: checkpoint(mlp, t)))
