"""The sweep's picture and page: memory against step time, with the spread over the rounds."""
import base64
import html
import io
import os

try:
    import matplotlib
except ImportError:
    raise SystemExit("sweep: -o needs matplotlib: pip install matplotlib, or leave -o out for the table alone")
matplotlib.use("Agg")
# Letters as text, and the same file for the same figures: fit to be committed.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "recoup"})
from matplotlib import pyplot  # noqa: E402


def figure(table):
    """Bytes kept by forward and at the peak (left), and step time over the plain run's (right)."""
    names = [row["recompute"] for row in table]
    at = range(len(table))
    fig, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.bar([i - 0.2 for i in at], [row["saved by forward"] / 2**20 for row in table], 0.4, label="kept by forward")
    left.bar([i + 0.2 for i in at], [row["peak"] / 2**20 for row in table], 0.4, label="at the peak")
    left.set(ylabel="MiB of activations", ylim=0)
    left.legend()
    middle = [row["step time"] for row in table]
    spread = [[m - row["least"] for m, row in zip(middle, table)], [row["most"] - m for m, row in zip(middle, table)]]
    right.bar(at, middle, 0.5, yerr=spread, capsize=4, color="tab:orange")
    right.set(ylabel="step time, plain = 1 (median, least and most)", ylim=0)
    for axis in (left, right):
        axis.set_xticks(list(at), names, rotation=30, ha="right")
        axis.grid(axis="y", alpha=0.3)
    return fig


def write(table, header, cells, folder):
    fig = figure(table)
    for ending in ("svg", "png"):
        fig.savefig(os.path.join(folder, f"sweep.{ending}"), dpi=120, metadata={"Date": None} if ending == "svg" else None)
    image = io.BytesIO()
    fig.savefig(image, format="svg")
    line = "<tr>{}</tr>".format
    head = line("".join(f"<th>{html.escape(h)}</th>" for h in header))
    body = "".join(line("".join(f"<td>{html.escape(c)}</td>" for c in cells(row))) for row in table)
    with open(os.path.join(folder, "sweep.html"), "w") as file:
        file.write(f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>recoup: what recompute costs and saves</title>
<style>body{{font:16px sans-serif;max-width:72em;margin:2em auto;padding:0 1em}}img{{max-width:100%}}
table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}}</style>
</head><body><h1>What recompute costs and saves</h1>
<p>Every run had the losses that its row says; "equal" means to the bit of the run without recompute.</p>
<img alt="activation bytes and step time of each setting"
src="data:image/svg+xml;base64,{base64.b64encode(image.getvalue()).decode()}">
<table>{head}{body}</table>
<p>Spans of each forward and recompute: open <code>trace.json</code> at ui.perfetto.dev.</p></body></html>
""")
