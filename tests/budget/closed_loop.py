"""The memory budget's closed loop on the example trainer: state a budget, train, measure.

    python tests/budget/closed_loop.py [--small] [CASE ...]

For each case (a model and how it is trained) budgets over the whole range, from below what full
recompute reaches to above what none needs. Each run must keep the budget from the step after the
plan on, at the peak that was predicted, with losses equal to the bit to a plain run, and with no
more recomputes than the best fixed first-N that fits. Prints a table; fails where one of these does
not hold. --small: 6 runs of small models.
"""
import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("RECOUP_BUILD", os.path.join(ROOT, "build"))
STEPS = 7
PLANNED = 3  # steps before the first that is planned: two of warm-up, one measured

# flags, layers, processes, microbatches, pipeline stages
Case = collections.namedtuple("Case", "flags layers processes microbatches stages", defaults=(1, 1, 1))


def case(layers, hidden, context, batch, *more, processes=1, microbatches=1, stages=1):
    flags = ["--layers", layers, "--hidden", hidden, "--ffn", 4 * hidden, "--heads", max(hidden // 64, 2),
             "--context", context, "--batch", batch, "--microbatches", microbatches, "--device", "cpu", *more]
    if stages > 1:
        flags += ["--pipeline-parallel", stages]
    return Case([str(f) for f in flags], layers, processes, microbatches, stages)


CASES = {
    "8x512": case(8, 512, 256, 1),
    "4x1024": case(4, 1024, 256, 1),
    "24x64": case(24, 64, 64, 4),
    "unequal": case(8, 128, 128, 2, "--wide-every", 2),
    "accumulation": case(6, 128, 128, 8, microbatches=4),
    "moe between": case(8, 128, 128, 2, "--moe-every", 2),
    "1F1B of 2": case(8, 128, 64, 6, processes=2, microbatches=6, stages=2),
    "1F1B of 4": case(8, 128, 64, 8, processes=4, microbatches=8, stages=4),
    "tensor parallel": case(6, 128, 128, 2, "--tensor-parallel", "2", processes=2),
}
SMALL = {
    "alike": (case(6, 64, 64, 2), (0.0, 0.5)),
    "unequal": (case(4, 64, 64, 2, "--wide-every", 2), (0.6,)),
    "accumulation": (case(4, 64, 64, 4, microbatches=2), (0.3, 1.1)),
    "1F1B of 2": (case(4, 64, 64, 4, processes=2, microbatches=4, stages=2), (0.5,)),
}
SHARES = (-0.5, 0.05, 0.35, 0.65, 1.1)  # of the way from full recompute's peak to the plain one


class Failed(Exception):
    pass


def train(case, text, *flags, yaml=None, traced=False, plugin=True):
    """[report, trace or None] of each rank, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        report, trace, config = (os.path.join(folder, name) for name in ("report", "trace", "config.yaml"))
        command = [os.path.join(BUILD, "gpt_trainer"), "--text", text, "--steps", str(STEPS), "--report", report,
                   *case.flags, *flags]
        if plugin:
            command += ["--plugin", os.path.join(BUILD, "librecoup.so")]
        if yaml:
            with open(config, "w") as file:
                file.write(yaml)
            command += ["--config", config]
        if case.processes > 1:
            command = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone",
                       "--nproc-per-node", str(case.processes), *command]
        env = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
        env["OMP_NUM_THREADS"] = "1"
        if traced:
            env["RECOUP_TRACE"] = trace
        run = subprocess.run(command, capture_output=True, text=True, env=env)
        if run.returncode != 0:
            raise Failed(run.stderr[-2000:])

        def load(path, rank):
            path += f".{rank}" if rank else ""
            if not os.path.exists(path):
                return None
            with open(path) as file:
                return json.load(file)

        return [(load(report, r), load(trace, r) if traced else None) for r in range(case.processes)], run.stderr


def steady(report):
    """The peak of the steps from the first planned one on."""
    return max(report["step_peak_bytes"][PLANNED:])


class Fixed:
    """Peaks of the fixed first-N of each rank, run when asked for."""

    def __init__(self, case, text):
        self.case, self.text, self.runs = case, text, {}

    def of(self, n):
        if n not in self.runs:
            scope = "recompute_layer_scope: stage\n" if self.case.stages > 1 else ""
            yaml = ("recompute_granularity: selective\nrecompute_modules: [mlp]\n" + scope +
                    f"recompute_mlp_num_layers: {n}\n") if n else None
            ranks, _ = train(self.case, self.text, yaml=yaml, plugin=bool(n))
            self.runs[n] = [(report or ranks[0][0]) for report, _ in ranks]
        return self.runs[n]

    def most(self):
        return self.case.layers // self.case.stages

    def best(self, rank, budget):
        """The least N whose peak is within the budget on this rank; None: none is."""
        low, high = 0, self.most()
        if steady(self.of(high)[rank]) > budget:
            return None
        while low < high:
            middle = (low + high) // 2
            if steady(self.of(middle)[rank]) <= budget:
                high = middle
            else:
                low = middle + 1
        return low


def recomputes(trace):
    return sum(e.get("cat") == "recompute" for e in trace["traceEvents"])


def run_budget(name, case, fixed, share, text):
    """One budget; a row for each rank."""
    plain, full = fixed.of(0), fixed.of(fixed.most())
    # One budget for all ranks, as a user writes it: of the rank that needs most.
    low, high = max(map(steady, full)), max(map(steady, plain))
    budget = int(low + share * (high - low))
    ranks, said = train(case, text, "--memory-budget", str(budget), traced=True)
    rows = []
    for rank, (report, trace) in enumerate(ranks):
        def require(condition, what):
            if not condition:
                raise Failed(f"{name}, budget {budget:,}, rank {rank}: {what}\n{said}")

        require(report["losses"] == plain[rank]["losses"], "losses differ from the plain run's")
        said_here = [e for e in trace["traceEvents"] if e.get("cat") == "budget"]
        plans = [e for e in said_here if "predicted_bytes" in e["args"]]
        require(len(plans) == 1, f"{len(plans)} plans, not one: {[e['name'] for e in said_here]}")
        plan, predicted = plans[0]["name"], plans[0]["args"]["predicted_bytes"]
        measured = steady(report)
        ran = recomputes(trace)
        if "cannot be kept" in plan:
            require(steady(full[rank]) > budget, "a budget that full recompute keeps was given up")
            released, activation, units = 0, 0, None
        else:
            found = re.search(r"(\d+) of \1 (?:MLPs|parts) recomputed, peak .*; (\d+) released, "
                              r"(?:(\d+) at level activation, )?predicted ", plan)
            require(found, plan)
            units, released, activation = int(found[1]), int(found[2]), int(found[3] or 0)
            require(measured <= budget, f"measured {measured:,}")
            # All units recompute in the first three steps, and the planned ones in the others.
            expected = PLANNED * units + (STEPS - PLANNED) * (units - released)
            require(ran == expected, f"{ran} recomputes in {STEPS} steps, not {expected}")
            best = fixed.best(rank, budget)
            require(best is None or units - released - activation <= best * case.microbatches,
                    f"{units - released - activation} full recomputes, fixed N = {best} needs fewer")
            if budget >= steady(plain[rank]):
                require(released == units, f"{units - released} recomputed where none need be")
        require(abs(measured - predicted) <= 0.001 * predicted, f"measured {measured:,}, predicted {predicted:,}")
        best = fixed.best(rank, budget)
        rows.append([name, rank, f"{budget:,}", f"{measured:,}", f"{100 * (measured / predicted - 1):+.3f} %",
                     "all (floor)" if units is None else f"{units - released - activation} full + {activation} act.",
                     "none fits" if best is None else best * case.microbatches])
    return rows


def run(cases, text):
    table = [["case", "rank", "budget", "measured peak", "off", "recomputes a step", "best fixed N"]]
    print(" | ".join(table[0]), flush=True)
    failures = []
    for name, (case, shares) in cases.items():
        fixed = Fixed(case, text)
        for share in shares:
            try:
                for row in run_budget(name, case, fixed, share, text):
                    print(" | ".join(map(str, row)), flush=True)
                    table.append(row)
            except Failed as failed:
                failures.append(str(failed))
                print("FAILED", failed, flush=True)
    return table, failures


def write_text(folder):
    path = os.path.join(folder, "text.txt")
    with open(path, "w") as file:
        file.write("".join(f"{n} bottles of milk on the wall, take one down. " for n in range(500)))
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no case {sorted(unknown)}; there are {', '.join(CASES)}")
    cases = SMALL if arguments.small else {name: (CASES[name], SHARES) for name in arguments.cases or CASES}
    with tempfile.TemporaryDirectory() as folder:
        table, failures = run(cases, write_text(folder))
    print(f"{len(table) - 1} ranks' budgets kept, {len(failures)} runs failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
