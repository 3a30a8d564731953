"""Megatron-LM: real wheels through megatron_versions.py, and what needs no wheel."""
import os
import subprocess
import sys

import pytest

import megatron_versions as megatron


# The oldest and the newest wheel; tests/patches/megatron_versions.py does all, checkouts too.
@pytest.mark.parametrize("version", [megatron.VERSIONS[0], megatron.VERSIONS[-1]])
def test_version(version):
    results = megatron.verify(version)
    assert len(results) > 60
    assert [name for name, passed in results.items() if not passed] == []


def _hang(mode, seconds):
    return subprocess.run(
        [sys.executable, os.path.join(megatron.HERE, "bias_hang.py"), mode], capture_output=True,
        text=True, timeout=seconds, env={**os.environ, "PYTHONPATH": megatron.PACKAGE})


def test_a_parameter_as_second_output_never_returns_from_a_reentrant_checkpoint():
    """Why Megatron's own checkpoint of an MLP with a bias hangs, with or without a GPU: the first run
    gives the bias the checkpoint's own node as history, and backward enters it again and again."""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        _hang("reentrant", 20)
    assert caught.value.stdout.decode().count("history of the bias: <torch.autograd.function.Reentrant") > 2


def test_recoups_engine_returns():
    done = _hang("recoup", 120)
    assert done.returncode == 0, done.stderr
    assert "gradient of the bias: [2.0, 2.0, 2.0, 2.0]" in done.stdout
