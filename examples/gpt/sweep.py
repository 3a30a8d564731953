"""Trains with the MLP of the first N layers recomputed, for several N, and prints the table.

Fails where a loss differs by a bit, or where the bytes saved are not the same for each layer.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile


def train(trainer, plugin, text, layers, n, extra):
    """The trainer's report of one run; n None: without the plugin."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = [trainer, "--text", text, "--layers", str(layers), "--report", report, *extra]
        environment = dict(os.environ)
        environment.pop("RECOUP_CONFIG", None)
        if n is not None:
            command += ["--plugin", plugin]
            environment["RECOUP_RECOMPUTE_MLP_NUM_LAYERS"] = str(n)
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"{' '.join(command)}:\n{run.stderr}")
        with open(report) as file:
            return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--n", type=int, nargs="+", default=[0, 6, 12, 24])
    parser.add_argument("--steps", type=int, default=10)
    options, extra = parser.parse_known_args()
    extra += ["--steps", str(options.steps)]

    common = (options.trainer, options.plugin, options.text, options.layers)
    plain = train(*common, None, extra)
    print(f"{'N':>7} {'last loss':>10} {'equal':>6} {'saved by forward':>17} {'less':>11} "
          f"{'per layer':>10} {'peak':>11} {'tokens/s':>9}")
    problems, per_layer = [], set()
    for n in [None, *options.n]:
        report = plain if n is None else train(*common, n, extra)
        equal = report["losses"] == plain["losses"]
        less = plain["saved_bytes"] - report["saved_bytes"]
        layers = min(n or 0, options.layers)
        if layers:
            per_layer.add(less / layers)
        elif less:
            problems.append(f"N={n}: {less} bytes saved by nothing")
        if not equal:
            problems.append(f"N={n}: the losses differ")
        print(f"{'plain' if n is None else n:>7} {report['losses'][-1]:>10.6f} "
              f"{'yes' if equal else 'NO':>6} {report['saved_bytes']:>17,} {less:>11,} "
              f"{less // layers if layers else 0:>10,} {report['peak_bytes']:>11,} "
              f"{report['tokens_per_second']:>9,.0f}")
    if len(per_layer) > 1 or any(b <= 0 or b != int(b) for b in per_layer):
        problems.append(f"bytes a layer are not one number: {sorted(per_layer)}")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
