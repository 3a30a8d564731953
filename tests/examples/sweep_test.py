"""examples/gpt/sweep.py: what it prints, writes and refuses."""
import csv
import json
import os
import subprocess
import sys

from conftest import BUILD, ROOT, SMALL

SWEEP = os.path.join(ROOT, "examples", "gpt", "sweep.py")


def sweep(text, *arguments, trainer=os.path.join(BUILD, "gpt_trainer")):
    return subprocess.run([sys.executable, SWEEP, "--trainer", trainer, "--plugin", os.path.join(BUILD, "librecoup.so"),
                           "--text", text, "--layers", "4", "--steps", "2", "--rounds", "2", *arguments, *SMALL],
                          capture_output=True, text=True)


def test_the_table_and_the_files(text, tmp_path):
    levels = os.path.join(ROOT, "configs", "mlp_activation_only.yaml")
    run = sweep(text, "--n", "0", "2", "--config", f"level activation={levels}", "-o", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr
    table = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [row["recompute"] for row in table] == ["plain", "N = 0", "N = 2", "level activation"]
    assert all(row["equal"] for row in table)
    assert table[0]["less"] == table[1]["less"] == 0 < table[2]["less"] == 2 * table[2]["per layer"]
    assert table[3]["less"] > 0
    assert all(row["least"] <= row["step time"] <= row["most"] for row in table)
    rows = list(csv.DictReader((tmp_path / "out" / "sweep.csv").open()))
    assert [int(row["saved by forward"]) for row in rows] == [row["saved by forward"] for row in table]
    assert f"{table[2]['less']:,}" in run.stdout and f"{table[2]['less']:,}" in (tmp_path / "out" / "sweep.md").read_text()
    assert "level activation" in (tmp_path / "out" / "sweep.svg").read_text()
    assert "<table>" in (tmp_path / "out" / "sweep.html").read_text()
    assert json.loads((tmp_path / "out" / "trace.json").read_text())
    # Each series once a round, in turn.
    assert [line.split(": ")[1] for line in run.stderr.splitlines()] == [row["recompute"] for row in table] * 2


def test_what_cannot_be_is_refused(text, tmp_path):
    assert "--n 9: there are 4 layers" in sweep(text, "--n", "9").stderr
    assert "--report is set by the sweep itself" in sweep(text, "--report", "x").stderr
    assert "--rounds" in sweep(text, "--rounds", "0").stderr
    assert "cannot load the plugin" not in sweep(text, "--n", "0").stderr
    failed = sweep(text, "--no-such-flag")
    assert failed.returncode != 0 and "--no-such-flag" in failed.stderr


def test_other_losses_fail_it(text, tmp_path):
    """A trainer whose losses depend on whether a plugin is there."""
    trainer = tmp_path / "trainer"
    trainer.write_text("""#!/bin/sh
for last; do [ "$previous" = --report ] && report=$last; [ "$last" = --plugin ] && loss=2; previous=$last; done
echo '{"losses": ['${loss:-1}'], "saved_bytes": 8, "peak_bytes": 8, "step_seconds": [1, 1], "tokens_per_step": 1}' >"$report"
""")
    trainer.chmod(0o755)
    failed = sweep(text, "--n", "0", trainer=str(trainer))
    assert failed.returncode != 0
    assert "N = 0: the losses differ from those without recompute" in failed.stderr
