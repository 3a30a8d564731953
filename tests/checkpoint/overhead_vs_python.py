"""What one checkpoint call costs beside Python's torch.utils.checkpoint, all in one run.

The model is an MLP too small for its arithmetic to matter. The cost of a call is the time of forward
and backward with the checkpoint minus that without; it has the recompute in it. Rounds of C++ and
Python alternate; each round alternates plain and checkpointed steps and takes medians; the table
shows the median of the rounds. Exits 1 where recoup's cost is more than a tenth of that of Python's
non-reentrant checkpoint.
"""
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.utils.checkpoint import checkpoint

BUILD = os.environ.get("RECOUP_BUILD", os.path.join(os.path.dirname(__file__), "..", "..", "build"))
ROUNDS, STEPS, ROWS, HIDDEN = 7, 400, 8, 16


def cpp():
    """Microseconds of (plain, checkpointed) steps, from the benchmark binary."""
    run = subprocess.run([os.path.join(BUILD, "checkpoint_bench"), "--benchmark_format=json",
                          f"--benchmark_filter=SideBySide/{ROWS}/{HIDDEN}"],
                         capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)["benchmarks"][0]
    return result["plain_us"], result["checkpointed_us"]


def python():
    """Microseconds of (plain, non-reentrant, reentrant) steps."""
    torch.set_num_threads(1)
    mlp = torch.nn.Sequential(torch.nn.Linear(HIDDEN, 4 * HIDDEN), torch.nn.GELU(),
                              torch.nn.Linear(4 * HIDDEN, HIDDEN))
    x = torch.randn(ROWS, HIDDEN, requires_grad=True)
    forwards = [lambda: mlp(x), lambda: checkpoint(mlp, x, use_reentrant=False),
                lambda: checkpoint(mlp, x, use_reentrant=True)]
    times = [[] for _ in forwards]
    for _ in range(STEPS):
        for forward, samples in zip(forwards, times):
            start = time.perf_counter()
            forward().sum().backward()
            samples.append((time.perf_counter() - start) * 1e6)
    return [statistics.median(samples) for samples in times]


def main():
    python()  # warm-up
    rounds = []
    for _ in range(ROUNDS):
        plain_cpp, ours = cpp()
        plain_python, non_reentrant, reentrant = python()
        rounds.append((plain_cpp, ours - plain_cpp, plain_python, non_reentrant - plain_python,
                       reentrant - plain_python))
    plain_cpp, ours, plain_python, non_reentrant, reentrant = map(statistics.median, zip(*rounds))
    print(f"MLP of {ROWS} x {HIDDEN}, medians of {ROUNDS} rounds, microseconds for forward and backward")
    print(f"{'':32}{'plain':>8} {'+ checkpoint':>13} {'of non-reentrant':>17}")
    for name, plain, cost in (("recoup, C++", plain_cpp, ours),
                              ("torch.utils.checkpoint, non-reentrant", plain_python, non_reentrant),
                              ("torch.utils.checkpoint, reentrant", plain_python, reentrant)):
        print(f"{name:38}{plain:>6.0f} {cost:>9.1f} {cost / non_reentrant:>15.1%}")
    return 0 if ours <= non_reentrant / 10 else 1


if __name__ == "__main__":
    sys.exit(main())
