"""What a recompute is compared with (check=, RECOUP_CHECK), and a region that runs plainly."""
import os
import subprocess
import sys

import pytest
import torch

import recoup
from conftest import ROOT

PROGRAM = """
import torch, recoup
calls = []
def f(t):
    calls.append(1)
    return (t * len(calls)).exp().sin()
recoup.checkpoint(f, torch.zeros(100, 100, requires_grad=True) + 1, name="layer 3 mlp").sum().backward()
"""


def test_values_are_compared_where_asked():
    def backward(check):
        calls = []

        def drifts(t):
            calls.append(1)
            return (t + (torch.eye(100) if len(calls) > 1 else 0)).exp().sin()

        x = torch.zeros(100, 100, requires_grad=True)
        recoup.checkpoint(drifts, x, check=check, name="layer 3 mlp").sum().backward()

    backward("shapes")
    with pytest.raises(RuntimeError, match="recoup: layer 3 mlp: saved tensor .* 3 of its 3 blocks of 4096 values"):
        backward("values")
    with pytest.raises(RuntimeError, match=r"100 of its 10000 values differ, the first at \[0, 0\]"):
        backward("copy")
    with pytest.raises(ValueError, match="check='bits' is no check; allowed are 'shapes', 'values', 'copy'"):
        backward("bits")


@pytest.mark.parametrize("value, code, words", [
    ("", 0, []),
    ("values", 1, ["RECOUP_CHECK=values: the values of every", "recoup: layer 3 mlp: saved tensor", "3 of its 3 blocks"]),
    ("copy", 1, ["10000 of its 10000 values differ"]),
    ("all", 1, ["ValueError: recoup.checkpoint: RECOUP_CHECK='all' is no check; allowed are 'shapes', 'values', 'copy'"]),
])
def test_the_environment_asks(value, code, words):
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True,
                         env={**os.environ, "RECOUP_CHECK": value,
                              "PYTHONPATH": os.path.join(ROOT, "plugin", "python")})
    assert ran.returncode == code, ran.stderr
    assert all(word in ran.stderr for word in words), ran.stderr


def test_a_region_that_runs_plainly():
    calls, entered = [], []

    def f(t):
        calls.append(recoup.recomputing())
        return t.exp().sin()

    class Notes:
        def __enter__(self):
            entered.append(1)

        def __exit__(self, *_):
            pass

    x = torch.randn(4, requires_grad=True)
    plain = torch.autograd.grad(f(x).sum(), x)[0]
    y = recoup.checkpoint(f, x, recompute=False, context_fn=lambda: (Notes(), Notes()))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], plain)
    assert calls == [False, False] and entered == [1]
