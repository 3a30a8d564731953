"""recoup plan: picks the layers to recompute for a memory budget.  recoup report: shows what each N costs.

    recoup plan --model MODEL.yaml --budget 12GiB [-o PLAN.yaml]
    recoup plan --profile PROFILE.json --report REPORT.json --budget 48MiB [-o PLAN.yaml]
    recoup report --trainer TRAINER --plugin librecoup.so --text TEXT --layers 24 [-o FOLDER]

MODEL.yaml has the keys of memory.Model. A profile is what the plugin writes with RECOUP_PROFILE, a report
what the trainer writes with --report in the same run. The budget is for one rank's activations at their
peak: with 1F1B, pipeline stage p (from 0) of P keeps P - p microbatches.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

import yaml

import report as reports
from memory import Model
from plan import Choice, best, to_yaml


class Problem(Exception):
    """A sentence for the user."""


def parse_bytes(text):
    match = re.fullmatch(r"([0-9.]+)\s*([KMGT]i?)?B?", text)
    try:
        number = float(match.group(1))
    except (AttributeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are bytes such as 12GiB, 500MB or 1048576") from None
    unit = match.group(2) or ""
    power = " KMGT".index(unit[0]) if unit else 0
    return number * (1024 if unit.endswith("i") else 1000) ** power


def read_model(path):
    try:
        with open(path) as file:
            options = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise Problem(f"{path}: {error}") from None
    known = list(Model.__dataclass_fields__)
    if not isinstance(options, dict):
        raise Problem(f"{path}: must be a mapping of {', '.join(known)}")
    for key in options:
        if key not in known:
            raise Problem(f"{path}: {key}: unknown key; allowed: {', '.join(known)}")
    try:
        return Model(**options)
    except (TypeError, ValueError) as error:
        raise Problem(f"{path}: {error}") from None


def stages_of_model(model):
    """[(bytes at the peak without recompute, choices)] for each pipeline stage."""
    act = model.layer_bytes(["mlp.act"])
    full = act + model.layer_bytes(["mlp.fc1"])
    core = model.layer_bytes(["core_attn"])
    per_stage = model.layers // model.pipeline_parallel
    stages = []
    for stage in range(model.pipeline_parallel):
        in_flight = min(model.pipeline_parallel - stage, model.microbatches)
        layers = range(stage * per_stage + 1, (stage + 1) * per_stage + 1)
        base = per_stage * model.layer_bytes() * in_flight
        if stage == model.pipeline_parallel - 1:
            base += model.outside_bytes() + model.backward_bytes()
        choices = []
        for n in layers:
            choices += [
                Choice(n, "mlp activation", act * in_flight, model.seconds("mlp.act")),
                Choice(n, "mlp full", full * in_flight, model.seconds("mlp.act") + model.seconds("mlp.fc1")),
                Choice(n, "core_attn", core * in_flight, model.seconds("core_attn")),
            ]
        stages.append((base, choices, in_flight))
    return stages


def stages_of_profile(profile_path, report_path):
    """The same for the one stage that was profiled."""
    try:
        with open(profile_path) as file:
            profile = json.load(file)
        with open(report_path) as file:
            report = json.load(file)
        if profile.get("recoup_profile") != 1:
            raise Problem(f"{profile_path}: is no profile; take one with RECOUP_PROFILE")
        parts = {(r["layer"], r["part"]): r for r in profile["regions"]}
        base = report["peak_bytes"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise Problem(f"{profile_path}, {report_path}: {error!r}") from None
    choices = []
    for (layer, part), r in sorted(parts.items()):
        if part == "core_attn":
            choices.append(Choice(layer, "core_attn", r["saved_bytes"] - r["extra_bytes"], r["recompute_ms"] / 1e3))
        if part == "mlp.rest" and (layer, "mlp.fc1") in parts:
            fc1 = parts[layer, "mlp.fc1"]
            choices.append(Choice(layer, "mlp activation", r["saved_bytes"], r["recompute_ms"] / 1e3))
            choices.append(Choice(layer, "mlp full", r["saved_bytes"] + r["input_bytes"],
                                  (fc1["forward_ms"] + r["recompute_ms"]) / 1e3))
    return [(base, [c for c in choices if c.saves > 0], 1)]


def plan(options):
    if bool(options.model) == bool(options.profile) or bool(options.profile) != bool(options.report):
        raise Problem("give --model, or --profile with --report")
    stages = (stages_of_model(read_model(options.model)) if options.model
              else stages_of_profile(options.profile, options.report))
    chosen, notes, costs = [], [], 0
    for number, (base, choices, in_flight) in enumerate(stages):
        choices = [c for c in choices if c.kind in options.kinds]
        # While a part is recomputed it takes its bytes again, once.
        again = max((c.saves / in_flight for c in choices), default=0) if base > options.budget else 0
        found = best(choices, base + again - options.budget)
        where = f"stage {number}: " if len(stages) > 1 else ""
        if found is None:
            least = base + again - most(choices)
            raise Problem(f"{where}no plan fits {options.budget:,.0f} bytes: all recomputed it is "
                          f"{least:,.0f}, nothing recomputed {base:,.0f}")
        chosen += found.chosen
        costs += found.costs
        notes.append(f"{where}{base:,.0f} bytes without recompute, {base - found.saves + (again if found.chosen else 0):,.0f} "
                     f"planned at the peak, {found.costs * 1e3:,.3f} ms of recompute a microbatch")
    text = to_yaml(chosen, f"recoup plan for {options.budget:,.0f} bytes\n" + "\n".join(notes))
    if options.output:
        with open(options.output, "w") as file:
            file.write(text)
    sys.stdout.write(text)


def most(choices):
    """The most that can be freed: every MLP at its larger level, every core attention."""
    parts = {}
    for c in choices:
        key = c.layer, c.kind.split()[0]
        parts[key] = max(parts.get(key, 0), c.saves)
    return sum(parts.values())


def report(options, extra):
    model = read_model(options.model) if options.model else None
    rows, losses = [], None
    with tempfile.TemporaryDirectory() as folder:
        for n in options.n or range(options.layers + 1):
            path = os.path.join(folder, "report.json")
            environment = {**os.environ, "RECOUP_RECOMPUTE_MLP_NUM_LAYERS": str(n)}
            environment.pop("RECOUP_CONFIG", None)
            trace = os.path.join(options.output, "trace.json") if n == options.layers else None
            if trace:
                os.makedirs(options.output, exist_ok=True)
                environment["RECOUP_TRACE"] = trace
            command = [options.trainer, "--text", options.text, "--plugin", options.plugin, "--layers",
                       str(options.layers), "--report", path, *extra]
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            if run.returncode != 0:
                raise Problem(f"{' '.join(command)}:\n{run.stderr}")
            with open(path) as file:
                result = json.load(file)
            losses = losses or result["losses"]
            if result["losses"] != losses:
                raise Problem(f"N = {n}: the losses differ from those of the first run")
            row = dict(n=n, saved_bytes=result["saved_bytes"], peak_bytes=result["peak_bytes"],
                       tokens_per_second=result["tokens_per_second"],
                       seconds=result["tokens_per_step"] / result["tokens_per_second"])
            if model:
                row["planned_bytes"] = (model.layers * model.layer_bytes() + model.outside_bytes()
                                        - n * model.layer_bytes(["mlp.act", "mlp.fc1"]))
            rows.append(row)
    print(reports.table(rows))
    reports.write(rows, options.output, os.path.join(options.output, "trace.json"))
    print(f"report.html, report.svg, report.png, report.json and trace.json are in {options.output}")


def main():
    parser = argparse.ArgumentParser(prog="recoup", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("plan")
    p.add_argument("--model")
    p.add_argument("--profile")
    p.add_argument("--report")
    p.add_argument("--budget", type=parse_bytes, required=True)
    p.add_argument("--kinds", nargs="+", choices=["mlp activation", "mlp full", "core_attn"],
                   default=["mlp activation", "mlp full"], help="what may be recomputed (default: the MLP)")
    p.add_argument("-o", "--output")
    r = commands.add_parser("report", help="further flags go to the trainer")
    r.add_argument("--trainer", required=True)
    r.add_argument("--plugin", required=True)
    r.add_argument("--text", required=True)
    r.add_argument("--layers", type=int, default=24)
    r.add_argument("--n", type=int, nargs="+")
    r.add_argument("--model", help="the model's YAML, to show the planned bytes too")
    r.add_argument("-o", "--output", default="recoup-report")
    options, extra = parser.parse_known_args()
    try:
        if options.command == "plan":
            if extra:
                parser.error(f"unknown arguments: {' '.join(extra)}")
            plan(options)
        else:
            report(options, extra)
    except Problem as problem:
        sys.exit(f"recoup: {problem}")


if __name__ == "__main__":
    main()
