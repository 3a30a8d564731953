"""The example trainer as a user runs it: flags, losses, bytes and errors."""
import os
import re
import subprocess

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


@pytest.mark.parametrize("config", sorted(os.listdir(os.path.join(ROOT, "configs"))))
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
