"""The example trainer as a user runs it: flags, losses, bytes and errors."""
import json
import os
import re
import subprocess
import time

import pytest

from conftest import BUILD, ROOT, run_trainer

FIRST = {"RECOUP_RECOMPUTE_MLP_NUM_LAYERS": "2"}
ROWS = 2 * 16  # batch x context
FFN_TENSOR = ROWS * 64 * 4  # one [rows, ffn] tensor of floats


@pytest.fixture(scope="module")
def plain(text):
    return run_trainer(text, plugin=False)


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_losses_are_equal_and_bytes_exact(text, plain, n):
    report = run_trainer(text, environment={"RECOUP_RECOMPUTE_MLP_NUM_LAYERS": str(n)})
    assert report["losses"] == plain["losses"]
    # fc1's output, gelu's output, and dropout's scaled mask.
    assert plain["saved_bytes"] - report["saved_bytes"] == n * 3 * FFN_TENSOR


@pytest.mark.parametrize("config", sorted(f for f in os.listdir(os.path.join(ROOT, "configs")) if f.endswith(".yaml")))
def test_every_shipped_config_trains_as_without(text, plain, config):
    report = run_trainer(text, config=os.path.join(ROOT, "configs", config))
    assert report["losses"] == plain["losses"]
    assert report["saved_bytes"] < plain["saved_bytes"]


def test_moe_layers_are_left_alone(text):
    plain = run_trainer(text, "--moe-every", "2", plugin=False)
    report = run_trainer(text, "--moe-every", "2", environment={"RECOUP_RECOMPUTE_MLP_NUM_LAYERS": "4"})
    assert report["losses"] == plain["losses"]
    assert plain["saved_bytes"] - report["saved_bytes"] == 2 * 3 * FFN_TENSOR
    assert re.findall(r"Layer (\d): recompute_mlp=(\w+)", report["stderr"]) == [
        ("1", "True"), ("2", "False"), ("3", "True"), ("4", "False")]


def test_moe_module_recomputes_moe_layers(text, tmp_path):
    config = tmp_path / "moe.yaml"
    config.write_text("recompute_granularity: selective\nrecompute_modules: [moe]\n")
    plain = run_trainer(text, "--moe-every", "2", plugin=False)
    report = run_trainer(text, "--moe-every", "2", config=config)
    assert report["losses"] == plain["losses"]
    assert report["saved_bytes"] < plain["saved_bytes"]


def test_activation_level_keeps_fc1s_output(text, plain):
    config = os.path.join(ROOT, "configs", "mlp_activation_only.yaml")
    report = run_trainer(text, config=config)
    assert plain["saved_bytes"] - report["saved_bytes"] == 4 * 2 * FFN_TENSOR


def test_bad_flags_and_files_are_one_clear_error(text, tmp_path):
    def error(*arguments):
        run = subprocess.run([os.path.join(BUILD, "gpt_trainer"), *arguments], capture_output=True, text=True)
        assert run.returncode != 0
        return run.stderr

    assert "--text" in error("--text", "/no/such/file")
    assert "cannot load the plugin /no/such.so" in error("--text", text, "--plugin", "/no/such.so")
    bad = tmp_path / "bad.yaml"
    bad.write_text("recompute_mlp_num_layer: 3\n")
    message = error("--text", text, "--plugin", os.path.join(BUILD, "librecoup.so"), "--config", str(bad))
    assert f"{bad}:1:1: recompute_mlp_num_layer: unknown key; did you mean" in message
    assert "--config needs --plugin" in error("--text", text, "--config", str(bad))
    short = tmp_path / "short.txt"
    short.write_text("x")
    assert "needs more than --context" in error("--text", str(short))


TINY = ["--layers", "2", "--hidden", "16", "--heads", "2", "--ffn", "64", "--context", "16", "--batch", "2",
        "--steps", "2", "--device", "cpu"]


def trainer(text, *arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run([os.path.join(BUILD, "gpt_trainer"), "--text", text, *TINY, *arguments], stdout=stdout,
                          stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def test_a_report_that_cannot_be_written_is_an_error(text, tmp_path):
    early = trainer(text, "--report", str(tmp_path / "no" / "r.json"))
    assert early.returncode == 1 and "r.json: cannot be written: No such file or directory" in early.stderr
    assert "2/2" not in early.stderr  # before training
    late = trainer(text, "--report", "/dev/full")
    assert late.returncode == 1 and "/dev/full: cannot be written: No space left" in late.stderr


def test_a_failed_run_leaves_the_report_that_was_there(text, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("of an earlier run")
    for report in (old, new):
        assert trainer(text, "--report", str(report), "--context", "100000000").returncode == 1
    assert old.read_text() == "of an earlier run" and not new.exists()


def test_full_standard_output_is_noticed(text):
    with open("/dev/full", "w") as full:
        run = trainer(text, stdout=full)
    assert run.returncode == 1 and "cannot be written to standard output" in run.stderr


@pytest.mark.parametrize("seed", ["99999999999999999999", "-99999999999999999999", "1.5", "x", ""])
def test_seeds_out_of_range_are_refused(text, seed):
    run = trainer(text, f"--seed={seed}")
    assert run.returncode not in (0, 1) and "--seed" in run.stderr + run.stdout


def test_what_the_plugin_cannot_write_fails_the_run(text, tmp_path):
    plugin = ["--plugin", os.path.join(BUILD, "librecoup.so")]
    path = tmp_path / "out" / "trace.json"
    early = trainer(text, *plugin, RECOUP_TRACE=str(path))
    assert early.returncode == 1 and f"RECOUP_TRACE={path}: cannot be written" in early.stderr
    assert "2/2" not in early.stderr
    both = trainer(text, *plugin, RECOUP_TRACE=str(tmp_path / "x"), RECOUP_PROFILE=str(tmp_path / "x"))
    assert both.returncode == 1 and "each needs a file of its own" in both.stderr
    good = trainer(text, *plugin, RECOUP_TRACE=str(tmp_path / "t.json"), RECOUP_PROFILE=str(tmp_path / "p.json"))
    assert good.returncode == 0 and "RECOUP_PROFILE is set" in good.stderr, good.stderr
    for name in ("t.json", "p.json"):
        json.loads((tmp_path / name).read_text())


def test_a_killed_run_leaves_a_complete_trace(text, tmp_path):
    """What was there when the process was killed can be read."""
    path = tmp_path / "trace.json"
    run = subprocess.Popen([os.path.join(BUILD, "gpt_trainer"), "--text", text, *TINY, "--steps", "1000000",
                            "--plugin", os.path.join(BUILD, "librecoup.so")], stderr=subprocess.DEVNULL,
                           env={**os.environ, "OMP_NUM_THREADS": "1", "RECOUP_TRACE": str(path),
                                "RECOUP_RECOMPUTE_MLP_NUM_LAYERS": "2"})
    try:
        while not path.exists():
            assert run.poll() is None
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
    assert len(json.loads(path.read_text())["traceEvents"]) >= 256


def test_a_profile_asks_each_layer_for_what_it_has(text, tmp_path):
    """An expert layer has no MLP of its own and a dense one no experts: nobody is told off for that."""
    path = tmp_path / "p.json"
    report = run_trainer(text, "--moe-every", "2", environment={"RECOUP_PROFILE": str(path)})
    assert "no checkpoint" not in report["stderr"]
    parts = {(r["layer"], r["part"]) for r in json.loads(path.read_text())["regions"]}
    assert parts == {(n, p) for n in (1, 3) for p in ("core_attn", "mlp.fc1", "mlp.rest")} | {
        (n, p) for n in (2, 4) for p in ("core_attn", "moe")}
