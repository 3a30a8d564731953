"""Hybrid models (HybridModel, and MambaModel before it): rows 12 of the table. CPU, attention and MLPs only."""
import logging
import os

import recoup.megatron  # noqa: F401

import cpu_megatron as cpu
import pytest
from hybrid_parts import PATTERN, build
from megatron.core.transformer.identity_op import IdentityOp

from recoup.megatron import _log

MLP = dict(recompute_granularity="selective", recompute_modules=["mlp"])


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("RECOUP_CONFIG", "RECOUP_RECOMPUTE_MLP_NUM_LAYERS"):
        monkeypatch.delenv(name, raising=False)
    _log.once.cache_clear()


def model(**options):
    return build(cpu.config(num_layers=len(PATTERN), **options), vocab_size=64, max_sequence_length=16)


def mlps(hybrid):
    return [layer.recompute_mlp for layer in hybrid.decoder.layers if not isinstance(layer.mlp, IdentityOp)]


def test_row_12_plain_numbers_count_every_symbol_and_say_how_many_mlps_that_is(caplog):
    with caplog.at_level(logging.INFO):
        hybrid = model(recompute_mlp_num_layers=4, **MLP)
    assert mlps(hybrid) == [True, True, False, False]
    warnings = [r.getMessage() for r in caplog.records if r.name == "recoup" and r.levelno == logging.WARNING]
    assert warnings == ["4 of the 8 layers of this hybrid model are to recompute their MLP, and hold 2 of its 4 "
                        "MLPs; recompute_layer_scope: mlp counts MLPs"]
    said = [r.getMessage() for r in caplog.records if "recompute_mlp=" in r.getMessage()]
    assert said == [f"Layer {n}: recompute_mlp={n <= 4}" for n in (2, 4, 6, 8)]
    assert not any(layer.recompute_mlp for layer in hybrid.decoder.layers if isinstance(layer.mlp, IdentityOp))


@pytest.mark.parametrize("n", [1, 3, 4])
def test_row_12_scope_mlp_counts_mlps(n, caplog, tmp_path, monkeypatch):
    expected = [number <= n for number in range(1, 5)]
    assert mlps(model(recompute_mlp_num_layers=n, recompute_layer_scope="mlp", **MLP)) == expected
    yaml = tmp_path / "x.yaml"
    yaml.write_text(f"recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: {n}\n"
                    "recompute_layer_scope: mlp\n")
    monkeypatch.setenv("RECOUP_CONFIG", os.fspath(yaml))
    assert mlps(model()) == expected
    assert not any(r.levelno == logging.WARNING and r.name == "recoup" for r in caplog.records)


def test_row_12_scope_mlp_in_a_gpt_model_with_experts():
    gpt = cpu.model(num_moe_experts=2, moe_layer_freq=[0, 1, 0, 1], recompute_mlp_num_layers=1,
                    recompute_layer_scope="mlp", **MLP)
    assert gpt.config.num_layers == 4
