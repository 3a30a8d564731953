"""Checks of recoup's run-time mode on an unpatched megatron-core; run by megatron_versions.py with
autoload on PYTHONPATH and RECOUP_CONFIG set to `mlp in layers 1 and 2, core_attn in 1 to 3`."""
import logging
import os

import cpu_megatron as cpu
import pytest
import torch

REFERENCE = torch.load(os.environ["MEGATRON_REFERENCE"])


def test_the_yaml_decides_for_each_layer(caplog):
    with caplog.at_level(logging.INFO, logger="recoup"):
        gpt = cpu.model()
    assert [one.recompute_mlp for one in gpt.decoder.layers] == [True, True, False, False]
    assert [one.self_attention.checkpoint_core_attention for one in gpt.decoder.layers] == [
        True, True, True, False]
    assert gpt.config.recompute_granularity == "selective"
    assert gpt.config.recompute_modules == ["core_attn", "mlp"]
    lines = [r.getMessage().split(",")[0] for r in caplog.records
             if "recompute_mlp=" in r.getMessage()]
    assert lines == [f"Layer {n}: recompute_mlp={n <= 2}" for n in range(1, 5)]


def test_moe_layers_are_untouched():
    gpt = cpu.model(num_moe_experts=2)
    assert [one.recompute_mlp for one in gpt.decoder.layers] == [False] * 4


def test_gradients_equal_the_run_without():
    assert cpu.same_bits(cpu.gradients(cpu.model()), REFERENCE[0])


def test_a_contradicting_job_is_an_error():
    with pytest.raises(ValueError, match="recoup: its configuration means recompute_granularity"):
        cpu.config(recompute_granularity="full", recompute_method="block", recompute_num_layers=1)
    with pytest.raises(ValueError, match="recompute_modules"):
        cpu.config(recompute_granularity="selective", recompute_modules=["mlp"])
    cpu.config(recompute_granularity="selective", recompute_modules=["mlp", "core_attn"])
