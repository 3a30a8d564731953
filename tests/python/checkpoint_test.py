"""recoup's engine in a Python process, beside all that Python's own engine does."""
import threading

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from recoup import checkpoint


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Dropout(0.5),
                               torch.nn.Linear(32, 8))


def run(mlp, forward):
    torch.manual_seed(1)
    mlp.zero_grad()
    x = torch.randn(4, 8, requires_grad=True)
    y = forward(x)
    y.pow(2).sum().backward()
    return [y.detach(), x.grad] + [p.grad for p in mlp.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


FORWARDS = {
    "plain": lambda m, x: m(x),
    "ours": lambda m, x: checkpoint(m, x),
    "ours in theirs": lambda m, x: torch_checkpoint(lambda h: checkpoint(m, h.sin()), x, use_reentrant=False),
    "theirs in plain": lambda m, x: torch_checkpoint(lambda h: m(h.sin()), x, use_reentrant=False),
    "theirs in ours": lambda m, x: checkpoint(
        lambda h: torch_checkpoint(m, h.sin(), use_reentrant=False), x),
    "ours in ours": lambda m, x: checkpoint(lambda h: checkpoint(m, h.sin()), x),
    "theirs reentrant in ours": lambda m, x: checkpoint(
        lambda h: torch_checkpoint(m, h.sin(), use_reentrant=True), x),
}


@pytest.mark.parametrize("name", ["ours", "ours in theirs", "theirs in ours", "ours in ours",
                                  "theirs reentrant in ours"])
def test_nesting_with_torch_checkpoint_is_bit_equal(mlp, name):
    sine = (lambda x: mlp(x.sin())) if " in " in name else mlp
    assert same(run(mlp, sine), run(mlp, lambda x: FORWARDS[name](mlp, x)))


def test_torch_checkpoint_beside_ours(mlp):
    def both(x):
        return torch_checkpoint(mlp, checkpoint(mlp, x), use_reentrant=False)

    assert same(run(mlp, lambda x: mlp(mlp(x))), run(mlp, both))


def test_pythons_hooks_see_the_input_and_nothing_within(mlp):
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(tuple(t.shape)) or t, lambda t: t):
        x = torch.randn(4, 8, requires_grad=True)
        y = checkpoint(mlp, x)
        y.sum().backward()
    assert packed == [(4, 8)]


def test_pythons_hooks_within_a_region_win(mlp):
    packed = []

    def forward(x):
        with saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
            return mlp(x)

    assert same(run(mlp, mlp), run(mlp, lambda x: checkpoint(forward, x)))
    assert packed


def test_save_on_cpu_around_a_region(mlp):
    with save_on_cpu():
        assert same(run(mlp, mlp), run(mlp, lambda x: checkpoint(mlp, x)))


def test_anomaly_mode(mlp):
    with torch.autograd.detect_anomaly(check_nan=True):
        assert same(run(mlp, mlp), run(mlp, lambda x: checkpoint(mlp, x)))
        x = torch.zeros(2, requires_grad=True)
        with pytest.raises(RuntimeError, match="nan"):
            checkpoint(lambda t: (t.sqrt() * 0).sqrt(), x).sum().backward()


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x * x)
        return x * x * x

    @staticmethod
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[1] + 0 * ctx.saved_tensors[0]


def test_python_functions_read_their_tensors_twice():
    x = torch.arange(4.0, requires_grad=True)
    calls = []

    def forward(t):
        calls.append(1)
        return Cube.apply(t.sin()) + 1

    checkpoint(forward, x).sum().backward()
    ours, x.grad = x.grad, None
    (Cube.apply(x.sin()) + 1).sum().backward()
    assert torch.equal(ours, x.grad) and len(calls) == 2


def test_except_exception_does_not_catch_an_early_stop(mlp):
    def forward(x):
        try:
            return mlp(x)
        except Exception:  # what careless code does
            raise AssertionError("an early stop is no Exception") from None

    assert same(run(mlp, mlp), run(mlp, lambda x: checkpoint(forward, x)))


def test_exceptions_keep_their_type():
    calls = []

    def forward(x):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("boom")
        return x.exp().sin()

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(KeyError, match="boom"):
        checkpoint(forward, x).sum().backward()
    with pytest.raises(ZeroDivisionError):
        checkpoint(lambda t: t / (1 // 0), x)


def test_errors_name_the_tensor():
    calls = []

    def forward(x):
        calls.append(1)
        return (x if len(calls) == 1 else x[:2]).exp()

    with pytest.raises(RuntimeError, match=r"recoup: layer 1 mlp: saved tensor 0: the forward saved "
                                           r"Float\[3\].*the recompute Float\[2\]"):
        checkpoint(forward, torch.ones(3, requires_grad=True), name="layer 1 mlp").sum().backward()


def test_structures_of_results():
    x = torch.ones(3, requires_grad=True)
    out = checkpoint(lambda a, b, flag: (a.exp(), None, flag, b), x, 5, True)
    assert type(out) is tuple and out[1:] == (None, True, 5)
    assert type(checkpoint(lambda a: [a.exp(), a.sin()], x)) is list
    torch.testing.assert_close(checkpoint(torch.exp, x), x.exp())


def test_double_backward_and_retain_graph():
    x = torch.randn(5, requires_grad=True)

    def second(forward):
        (g,) = torch.autograd.grad(forward(x).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), x)[0]

    def f(t):
        return t.sin() * t.exp()

    assert torch.equal(second(f), second(lambda t: checkpoint(f, t)))
    assert torch.autograd.gradcheck(lambda t: checkpoint(f, t), torch.randn(3, dtype=torch.double, requires_grad=True))
    assert torch.autograd.gradgradcheck(lambda t: checkpoint(f, t), torch.randn(3, dtype=torch.double, requires_grad=True))


def test_threads_do_not_wait_for_each_other_holding_the_gil(mlp):
    x = torch.randn(4, 8, requires_grad=True)
    mlp.eval()
    loss = checkpoint(lambda t: Cube.apply(mlp(t)), x).sum()
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    wrong = []

    def backward():
        for _ in range(30):
            if not torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected):
                wrong.append(1)

    threads = [threading.Thread(target=backward, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "deadlock"
    assert not wrong


def test_autocast(mlp):
    def cast(forward):
        def run_cast(x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return forward(x).float()
        return run_cast

    assert same(run(mlp, cast(mlp)), run(mlp, cast(lambda x: checkpoint(mlp, x))))
