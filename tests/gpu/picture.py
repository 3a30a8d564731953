"""python tests/gpu/picture.py SUMMARY.json PICTURE.svg: memory against step time of the stages that compare settings."""
import json
import sys


def draw(summary, path):
    """One panel for each stage with rows of settings; False where there is none."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    found = {name: row["data"]["rows"] for name, row in summary["stages"].items()
             if name in ("tradeoff", "apply") and "data" in row}
    if not found:
        return False
    figure, panels = pyplot.subplots(1, len(found), figsize=(6.5 * len(found), 4.5), layout="constrained", squeeze=False)
    for panel, (name, rows) in zip(panels[0], found.items()):
        for place, row in enumerate(rows):
            memory = (row["peak_bytes"] or 0) / 2**30
            middle = row["step_time"]
            panel.errorbar(memory, middle, yerr=[[middle - row["least"]], [row["most"] - middle]], capsize=4, marker="o",
                           linestyle="none", label=row["setting"], color=f"C{place}")
        panel.set(title=name, xlabel="GiB at the peak, above weights (0: not measured on a CPU)", xlim=(0, None),
                  ylabel="step time, none = 1 (median, least and most)", ylim=(0, None))
        panel.legend(fontsize="small")
        panel.grid(alpha=0.3)
    figure.suptitle(", ".join(map(str, summary["machine"].get("gpus") or [summary["machine"]["device"]])))
    figure.savefig(path)
    return True


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        if not draw(json.load(file), sys.argv[2]):
            sys.exit(f"{sys.argv[1]}: neither tradeoff nor apply ran: there is nothing to draw")
