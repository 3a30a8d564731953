"""The trade-off of N = 0..L as a table, a plot and one self-contained page."""
import base64
import html
import io
import json
import os


def table(rows):
    lines = [f"{'N':>4} {'saved bytes':>14} {'planned':>14} {'off':>7} {'peak bytes':>14} {'s/step':>8} {'tokens/s':>9}"]
    for r in rows:
        planned = f"{r['planned_bytes']:>14,.0f} {r['planned_bytes'] / r['saved_bytes'] - 1:>7.2%}" if (
            r.get("planned_bytes")) else f"{'':>14} {'':>7}"
        lines.append(f"{r['n']:>4} {r['saved_bytes']:>14,} {planned} {r['peak_bytes']:>14,} "
                     f"{r['seconds']:>8.3f} {r['tokens_per_second']:>9,.0f}")
    return "\n".join(lines)


def figure(rows):
    """Bytes and speed over N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n = [r["n"] for r in rows]
    fig, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(n, [r["saved_bytes"] / 2**20 for r in rows], "o", label="saved by forward, measured")
    if all(r.get("planned_bytes") for r in rows):
        left.plot(n, [r["planned_bytes"] / 2**20 for r in rows], "-", label="planned")
    left.plot(n, [r["peak_bytes"] / 2**20 for r in rows], "x", label="peak, measured")
    left.set(xlabel="N, layers with MLP recompute", ylabel="MiB of activations", ylim=0)
    left.legend()
    right.plot(n, [r["tokens_per_second"] for r in rows], "o")
    right.set(xlabel="N, layers with MLP recompute", ylabel="tokens/s", ylim=0)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return fig


def write(rows, folder, trace=None):
    """Writes report.json, report.svg, report.png and report.html (and keeps trace.json there)."""
    os.makedirs(folder, exist_ok=True)
    fig = figure(rows)
    for ending in ("svg", "png"):
        fig.savefig(os.path.join(folder, f"report.{ending}"), dpi=120)
    with open(os.path.join(folder, "report.json"), "w") as file:
        json.dump(rows, file, indent=1)
    image = io.BytesIO()
    fig.savefig(image, format="svg")
    cells = [("N", "n"), ("saved bytes", "saved_bytes"), ("planned bytes", "planned_bytes"),
             ("peak bytes", "peak_bytes"), ("seconds a step", "seconds"), ("tokens/s", "tokens_per_second")]
    body = "".join("<tr>" + "".join(
        f"<td>{r[key]:,.3f}</td>" if key == "seconds" else f"<td>{r.get(key) or 0:,.0f}</td>"
        for _, key in cells) + "</tr>" for r in rows)
    note = ("<p>Spans of each forward and recompute: open <code>" + html.escape(os.path.basename(trace)) +
            "</code> at ui.perfetto.dev.</p>" if trace else "")
    with open(os.path.join(folder, "report.html"), "w") as file:
        file.write(f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>recoup: what N costs and saves</title>
<style>body{{font:16px sans-serif;max-width:64em;margin:2em auto;padding:0 1em}}img{{max-width:100%}}
table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}}</style>
</head><body><h1>What N costs and saves</h1>
<p>The MLP of the first N layers recomputed; every run had the same losses, bit for bit.</p>
<img alt="activation bytes and tokens per second over N" src="data:image/svg+xml;base64,{base64.b64encode(image.getvalue()).decode()}">
<table><tr>{''.join(f'<th>{name}</th>' for name, _ in cells)}</tr>{body}</table>{note}</body></html>
""")
