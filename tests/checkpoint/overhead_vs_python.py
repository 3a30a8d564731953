"""What one checkpoint call costs beside Python's torch.utils.checkpoint, all in one run.

The model is an MLP too small for its arithmetic to matter. Three figures for each implementation:
  extra      forward and backward with the checkpoint, minus without
  recompute  fc1 and the activation run once more, by themselves: what a checkpoint is for
  overhead   extra minus recompute: what the mechanism itself costs
Rounds of C++ and Python alternate; each round alternates the measured steps and takes medians; the
table shows the median of the rounds. Exits 1 where recoup's overhead is more than a tenth of that of
Python's non-reentrant checkpoint.
"""
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.utils.checkpoint import checkpoint

import recoup

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BUILD = os.environ.get("RECOUP_BUILD", os.path.join(ROOT, "build"))

ROUNDS, STEPS, ROWS, HIDDEN = 7, 400, 8, 16


def cpp():
    """Microseconds of a plain step, a checkpointed one, and the bare recompute."""
    run = subprocess.run([os.path.join(BUILD, "checkpoint_bench"), "--benchmark_format=json",
                          f"--benchmark_filter=SideBySide/{ROWS}/{HIDDEN}"],
                         capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)["benchmarks"][0]
    return result["plain_us"], result["checkpointed_us"], result["recompute_us"]


def python():
    """Microseconds of a plain step, a non-reentrant one, a reentrant one, one of recoup's, and the bare
    recompute."""
    torch.set_num_threads(1)
    mlp = torch.nn.Sequential(torch.nn.Linear(HIDDEN, 4 * HIDDEN), torch.nn.GELU(),
                              torch.nn.Linear(4 * HIDDEN, HIDDEN))
    x = torch.randn(ROWS, HIDDEN, requires_grad=True)

    def step(forward):
        return lambda: forward().sum().backward()

    measured = [step(lambda: mlp(x)), step(lambda: checkpoint(mlp, x, use_reentrant=False)),
                step(lambda: checkpoint(mlp, x, use_reentrant=True)),
                step(lambda: recoup.checkpoint(mlp, x)),
                lambda: mlp[1](mlp[0](x.detach().requires_grad_()))]
    times = [[] for _ in measured]
    for _ in range(STEPS):
        for call, samples in zip(measured, times):
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e6)
    return [statistics.median(samples) for samples in times]


def main():
    python()  # warm-up
    rounds = {"recoup, C++": [], "recoup, from Python": [], "torch.utils.checkpoint, non-reentrant": [],
              "torch.utils.checkpoint, reentrant": []}
    for _ in range(ROUNDS):
        ours = cpp()
        plain, non_reentrant, reentrant, recoup, recompute = python()
        for name, (base, checkpointed, bare) in zip(
                rounds, (ours, *((plain, step, recompute) for step in (recoup, non_reentrant, reentrant)))):
            rounds[name].append((base, checkpointed - base, bare, checkpointed - base - bare))
    medians = {name: list(map(statistics.median, zip(*values))) for name, values in rounds.items()}
    *_, reference = medians["torch.utils.checkpoint, non-reentrant"]
    print(f"MLP of {ROWS} x {HIDDEN}, forward and backward, microseconds, medians of {ROUNDS} rounds")
    print(f"{'':38}{'plain':>7}{'extra':>8}{'recompute':>11}{'overhead':>10}{'of non-reentrant':>18}")
    for name, (plain, extra, recompute, overhead) in medians.items():
        print(f"{name:38}{plain:>7.0f}{extra:>8.1f}{recompute:>11.1f}{overhead:>10.1f}"
              f"{overhead / reference:>18.1%}")
    return 0 if medians["recoup, C++"][-1] <= reference / 10 else 1


if __name__ == "__main__":
    sys.exit(main())
