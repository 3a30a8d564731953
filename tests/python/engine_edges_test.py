"""The engine where PyTorch traces, nests tensors or compiles: what works with torch.utils.checkpoint works here."""
import contextlib

import pytest
import torch
import torch.nn.functional as F

from recoup import checkpoint, recomputing


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


def test_a_function_knows_that_it_is_recomputed():
    told = []

    def forward(t):
        told.append(recomputing())
        return t.exp().sin()

    checkpoint(forward, torch.ones(3, requires_grad=True)).sum().backward()
    assert told == [False, True] and not recomputing()


def test_a_bias_changed_before_the_recompute_is_an_error(mlp):
    y = checkpoint(mlp, torch.randn(4, 8, requires_grad=True), name="layer 3 mlp")
    with torch.no_grad():
        mlp[0].bias.add_(1)
    with pytest.raises(RuntimeError, match=r"recoup: layer 3 mlp: a tensor that the forward reads \(Float\[32\]"):
        y.sum().backward()


def test_another_storage_under_a_parameter_is_lawful(mlp):
    """What gathers and drops weights (ZeRO-3, FSDP, offloading) puts another storage under them."""
    x = torch.randn(4, 8, requires_grad=True)
    parameters = list(mlp.parameters())
    plain = gradients(mlp, [x], parameters)
    y = checkpoint(mlp, x)
    for p in parameters:
        p.data = p.data.clone()
    assert same(plain[1:], torch.autograd.grad(y.pow(2).sum(), [x, *parameters]))


def test_a_fused_optimizer_goes_unnoticed(mlp):
    """The one limit of the check: it advances no version counter, in a plain run neither."""
    y = checkpoint(mlp, torch.randn(4, 8, requires_grad=True))
    for p in mlp.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(mlp.parameters(), fused=True).step()
    y.sum().backward()


@pytest.mark.parametrize("input_of, words", [
    (lambda: torch.inference_mode()(lambda: torch.ones(4, 8))(), "input 0 is an inference tensor"),
])
def test_what_autograd_cannot_recompute_is_said(mlp, input_of, words):
    with pytest.raises(RuntimeError, match="recoup: layer 3 mlp: " + words):
        checkpoint(mlp, input_of(), name="layer 3 mlp")


def test_vmap_and_forward_mode_are_said(mlp):
    with pytest.raises(RuntimeError, match="recoup: layer 3 mlp: input 0 is batched by vmap"):
        torch.func.vmap(lambda t: checkpoint(mlp, t, name="layer 3 mlp"))(torch.randn(3, 4, 8))
    import torch.autograd.forward_ad as forward_ad
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="recoup: layer 3 mlp: input 0 has a forward-mode"):
        checkpoint(mlp, forward_ad.make_dual(torch.randn(4, 8), torch.randn(4, 8)), name="layer 3 mlp")


def test_a_saved_tensor_looked_at_outside_of_a_backward_is_dropped_again():
    calls = []

    def forward(t):
        calls.append(1)
        return torch.exp(t * t)

    x = torch.randn(64, requires_grad=True)
    y = checkpoint(forward, x)
    for looked in (2, 3):
        assert torch.equal(y.grad_fn._saved_result, y)
        assert len(calls) == looked
    y.sum().backward()
    assert len(calls) == 4
    with pytest.raises(RuntimeError, match="after they have already been freed"):
        y.grad_fn._saved_result


def test_a_recompute_detaches_each_saved_tensor_once():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    names = Names()
    x = torch.tensor(1.0, requires_grad=True)
    checkpoint(torch.exp, x, context_fn=lambda: (contextlib.nullcontext(), names)).backward()
    assert names.names == ["exp.default", "detach.default"]
