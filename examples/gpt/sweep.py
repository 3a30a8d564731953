"""What recompute saves and what it costs: trains with several settings in turn and compares them.

Each setting is a series: N layers with MLP recompute (--n), or a configuration of yours (--config).
Runs alternate (a round trains each series once), a run's first quarter is warm-up and left out, and
times are ratios to the run without the plugin of the same round: median, least and most over rounds.

Fails where a loss differs by a bit from the run without recompute, or where N layers do not free N
times the same bytes. Flags that it does not know go to the trainer (gpt_trainer --help).
"""
import argparse
import csv
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile

OURS = ("--plugin", "--config", "--report", "--text", "--steps", "--layers")  # not to be passed on


@dataclasses.dataclass
class Series:
    """One setting: `n` layers, or a configuration file; neither: without the plugin."""
    name: str
    n: int = None
    config: str = None
    reports: list = dataclasses.field(default_factory=list)  # the trainer's, one a round

    @property
    def saved(self):
        return self.reports[0]["saved_bytes"]

    @property
    def peak(self):
        return max(r["peak_bytes"] for r in self.reports)


def train(options, series, extra, trace=None):
    """The trainer's report of one run."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = [options.trainer, "--text", options.text, "--layers", str(options.layers), "--steps",
                   str(options.steps), "--report", report, *extra]
        environment = {k: v for k, v in os.environ.items() if k == "RECOUP_DEPS" or not k.startswith("RECOUP_")}
        if series.name != "plain":
            command += ["--plugin", options.plugin]
        if series.n is not None:
            environment["RECOUP_RECOMPUTE_MLP_NUM_LAYERS"] = str(series.n)
        if series.config:
            command += ["--config", series.config]
        if trace:
            environment["RECOUP_TRACE"] = trace
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"sweep: {' '.join(command)}:\n{run.stderr}")
        with open(report) as file:
            return json.load(file)


def steady(report):
    """Seconds of a step once warmed up."""
    steps = report["step_seconds"]
    return statistics.median(steps[(len(steps) + 3) // 4 % len(steps):])


def ratios(series, plain):
    """(least, median, most) over the rounds of step time over the plain run's of the same round."""
    each = [steady(r) / steady(p) for r, p in zip(series.reports, plain.reports)]
    return min(each), statistics.median(each), max(each)


def problems(all_series, layers):
    plain, found, per_layer = all_series[0], [], set()
    for s in all_series:
        if any(r["losses"] != plain.reports[0]["losses"] for r in s.reports):
            found.append(f"{s.name}: the losses differ from those without recompute")
        if s.n is not None:
            less, n = plain.saved - s.saved, min(s.n, layers)
            if n:
                per_layer.add(less / n)
            elif less:
                found.append(f"N = 0: {less} bytes saved by nothing")
    if len(per_layer) > 1 or any(b <= 0 or b != int(b) for b in per_layer):
        found.append(f"bytes a layer are not one number: {sorted(per_layer)}")
    return found


def rows(all_series, layers):
    """The table's cells: a list of dictionaries, numbers as numbers."""
    plain = all_series[0]
    for s in all_series:
        least, median, most = ratios(s, plain)
        n = min(s.n or 0, layers)
        yield {"recompute": s.name, "last loss": s.reports[0]["losses"][-1],
               "equal": all(r["losses"] == plain.reports[0]["losses"] for r in s.reports),
               "saved by forward": s.saved, "less": plain.saved - s.saved,
               "per layer": (plain.saved - s.saved) // n if n else 0, "peak": s.peak,
               "ms a step": statistics.median(steady(r) for r in s.reports) * 1e3,
               "step time": median, "least": least, "most": most,
               "tokens/s": s.reports[0]["tokens_per_step"] / statistics.median(map(steady, s.reports))}


def text_cells(row):
    return [row["recompute"], f"{row['last loss']:.6f}", "yes" if row["equal"] else "NO",
            f"{row['saved by forward']:,}", f"{row['less']:,}", f"{row['per layer']:,}", f"{row['peak']:,}",
            f"{row['ms a step']:.1f}", f"x{row['step time']:.3f}", f"{row['least']:.3f}-{row['most']:.3f}",
            f"{row['tokens/s']:,.0f}"]


HEADER = ["recompute", "last loss", "equal", "saved by forward", "less", "per layer", "peak", "ms a step",
          "step time", "spread", "tokens/s"]


def plain_table(table):
    lines = [HEADER, *map(text_cells, table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths)) for line in lines)


def markdown(table):
    lines = [HEADER, ["---:"] * len(HEADER), *map(text_cells, table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_csv(table):
    out = io.StringIO()
    writer = csv.DictWriter(out, table[0].keys())
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", required=True, help="build/gpt_trainer")
    parser.add_argument("--plugin", required=True, help="build/librecoup.so")
    parser.add_argument("--text", required=True, help="a text file to train on; examples/run.sh makes build/bible.txt")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--n", type=int, nargs="*", help="default: none, a quarter, half and all of the layers")
    parser.add_argument("--config", nargs="*", default=[], metavar="[NAME=]FILE",
                        help="configurations to compare beside N")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", metavar="FOLDER",
                        help="also write sweep.json, .csv, .md, .svg, .png, .html and trace.json (needs matplotlib)")
    parser.add_argument("--json", metavar="FILE", help="also write the table's numbers to this file")
    options, extra = parser.parse_known_args(arguments)
    if taken := [flag for flag in extra if flag.split("=")[0] in OURS]:
        parser.error(f"{taken[0]} is set by the sweep itself")
    if min(options.layers, options.steps, options.rounds) < 1:
        parser.error("--layers, --steps and --rounds must be at least 1")
    if options.n is None:
        options.n = sorted({0, options.layers // 4, options.layers // 2, options.layers})
    for n in options.n:
        if not 0 <= n <= options.layers:
            parser.error(f"--n {n}: there are {options.layers} layers")
    return options, extra


def run(options, extra):
    """All series, the plain one first, each with a report for each round."""
    all_series = [Series("plain")] + [Series(f"N = {n}", n=n) for n in options.n]
    for given in options.config:
        name, _, file = given.rpartition("=")
        all_series.append(Series(name or os.path.splitext(os.path.basename(file))[0], config=file))
    total = options.rounds * len(all_series)
    for done in range(total):
        series = all_series[done % len(all_series)]
        print(f"run {done + 1} of {total}: {series.name}", file=sys.stderr)
        series.reports.append(train(options, series, extra))
    return all_series


def main():
    options, extra = parse()
    if options.output:  # what cannot be written is said before anything is run
        import pictures
        os.makedirs(options.output, exist_ok=True)
    all_series = run(options, extra)
    table = list(rows(all_series, options.layers))
    print(plain_table(table))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(table, file, indent=1)
    if options.output:
        trace = os.path.join(os.path.abspath(options.output), "trace.json")
        train(options, all_series[-1], extra, trace)
        for name, content in (("json", json.dumps(table, indent=1)), ("csv", as_csv(table)), ("md", markdown(table))):
            with open(os.path.join(options.output, f"sweep.{name}"), "w") as file:
                file.write(content)
        pictures.write(table, HEADER, text_cells, options.output)
        print(f"sweep.html, .svg, .png, .json, .csv, .md and trace.json are in {options.output}")
    if found := problems(all_series, options.layers):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
