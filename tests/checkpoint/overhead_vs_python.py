"""What one checkpoint call costs beside Python's torch.utils.checkpoint, all in one run.

The model is an MLP too small for its arithmetic to matter. Three figures for each implementation:
  extra      forward and backward with the checkpoint, minus without
  recompute  fc1 and the activation run once more, by themselves: what a checkpoint is for
  overhead   extra minus recompute: what the mechanism itself costs
Rounds of C++ and Python alternate; each round alternates the measured steps and takes medians; the
table shows the median of the rounds and, of the overhead, the lowest and the highest round. Then the
goals, each with what was measured. Exits 1 where one is missed.
"""
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.utils.checkpoint import checkpoint

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "plugin", "python"))
import recoup  # noqa: E402

BUILD = os.environ.get("RECOUP_BUILD", os.path.join(ROOT, "build"))

ROUNDS, STEPS, ROWS, HIDDEN = 7, 400, 8, 16
CPP, CPP_PARTS = "recoup, C++, one part", "recoup, C++, in parts"
PYTHON, PYTHON_PARTS = "recoup, from Python, one part", "recoup, from Python, in parts"
STOCK, REENTRANT = "torch.utils.checkpoint, non-reentrant", "torch.utils.checkpoint, reentrant"


def cpp():
    """{name: (microseconds of a plain step, of a checkpointed one, of the bare recompute)}."""
    run = subprocess.run([os.path.join(BUILD, "checkpoint_bench"), "--benchmark_format=json",
                          f"--benchmark_filter=SideBySide/{ROWS}/{HIDDEN}"],
                         capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)["benchmarks"][0]
    return {name: (result["plain_us"], result[key], result["recompute_us"])
            for name, key in ((CPP, "checkpointed_us"), (CPP_PARTS, "in_parts_us"))}


def python():
    torch.set_num_threads(1)
    mlp = torch.nn.Sequential(torch.nn.Linear(HIDDEN, 4 * HIDDEN), torch.nn.GELU(),
                              torch.nn.Linear(4 * HIDDEN, HIDDEN))
    first, rest = mlp[:2], mlp[2]
    x = torch.randn(ROWS, HIDDEN, requires_grad=True)

    def step(forward):
        return lambda: forward().sum().backward()

    measured = {
        "plain": step(lambda: mlp(x)),
        PYTHON: step(lambda: recoup.checkpoint(mlp, x)),
        PYTHON_PARTS: step(lambda: recoup.checkpoint_parts(first, rest, x)),
        STOCK: step(lambda: checkpoint(mlp, x, use_reentrant=False)),
        REENTRANT: step(lambda: checkpoint(mlp, x, use_reentrant=True)),
        "recompute": lambda: first(x.detach().requires_grad_()),
    }
    times = {name: [] for name in measured}
    for _ in range(STEPS):
        for name, call in measured.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e6)
    median = {name: statistics.median(samples) for name, samples in times.items()}
    return {name: (median["plain"], median[name], median["recompute"])
            for name in (PYTHON, PYTHON_PARTS, STOCK, REENTRANT)}


def main():
    python()  # warm-up
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({name: (plain, step - plain, recompute, step - plain - recompute)
                       for name, (plain, step, recompute) in {**cpp(), **python()}.items()})
    names = (CPP, CPP_PARTS, PYTHON, PYTHON_PARTS, STOCK, REENTRANT)
    columns = {name: list(zip(*(one[name] for one in rounds))) for name in names}
    overhead = {name: statistics.median(columns[name][3]) for name in names}
    print(f"MLP of {ROWS} x {HIDDEN}, forward and backward, microseconds, medians of {ROUNDS} rounds")
    print(f"{'':38}{'plain':>7}{'extra':>8}{'recompute':>11}{'overhead':>10}{'(lowest to highest)':>21}"
          f"{'of non-reentrant':>18}")
    for name in names:
        plain, extra, recompute, _ = map(statistics.median, columns[name])
        spread = f"({min(columns[name][3]):.1f} to {max(columns[name][3]):.1f})"
        print(f"{name:38}{plain:>7.0f}{extra:>8.1f}{recompute:>11.1f}{overhead[name]:>10.1f}{spread:>21}"
              f"{overhead[name] / overhead[STOCK]:>18.1%}")
    goals = [
        ("non-reentrant at least 10 times ours in C++", overhead[STOCK] / overhead[CPP], 10, 1),
        ("non-reentrant at least 8 times ours from Python", overhead[STOCK] / overhead[PYTHON], 8, 1),
        ("in parts at most 35% of one part, C++", overhead[CPP_PARTS] / overhead[CPP], 0.35, -1),
        ("in parts at most 35% of one part, from Python", overhead[PYTHON_PARTS] / overhead[PYTHON], 0.35, -1),
    ]
    missed = 0
    for goal, is_, limit, sign in goals:
        missed += sign * is_ < sign * limit
        print(f"{goal}: {is_:.2f}{'' if sign * is_ >= sign * limit else '  MISSED'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
