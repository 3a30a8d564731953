"""Hybrid models (HybridModel, and MambaModel before it): rows 12 of the table. CPU, attention and MLPs only."""
import inspect
import logging
import os
import sys

import recoup.megatron  # noqa: F401

import cpu_megatron as cpu
import pytest
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from recoup.megatron import _log

try:
    from megatron.core.models.hybrid.hybrid_block import HybridStack as Stack
    from megatron.core.models.hybrid.hybrid_block import HybridStackSubmodules as Submodules
    from megatron.core.models.hybrid.hybrid_model import HybridModel as Model
except ImportError:
    from megatron.core.models.mamba.mamba_model import MambaModel as Model
    from megatron.core.ssm.mamba_block import MambaStack as Stack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as Submodules

from megatron.core.transformer.torch_norm import WrappedTorchNorm

sys.modules[Stack.__module__].TENorm = WrappedTorchNorm  # no Transformer Engine here

PATTERN = "*-*-*-*-"
MLP = dict(recompute_granularity="selective", recompute_modules=["mlp"])


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("RECOUP_CONFIG", "RECOUP_RECOMPUTE_MLP_NUM_LAYERS"):
        monkeypatch.delenv(name, raising=False)
    _log.once.cache_clear()


def spec():
    gpt = cpu.get_gpt_layer_local_spec().submodules
    attention = TransformerLayerSubmodules(
        input_layernorm=gpt.input_layernorm, self_attention=gpt.self_attention,
        self_attn_bda=gpt.self_attn_bda)
    mlp = TransformerLayerSubmodules(pre_mlp_layernorm=gpt.pre_mlp_layernorm, mlp=gpt.mlp,
                                     mlp_bda=gpt.mlp_bda)
    return ModuleSpec(module=Stack, submodules=Submodules(
        attention_layer=ModuleSpec(module=TransformerLayer, submodules=attention),
        mlp_layer=ModuleSpec(module=MLPLayer, submodules=mlp)))


def model(**options):
    known = inspect.signature(Model.__init__).parameters
    named = "hybrid_layer_pattern" if "hybrid_layer_pattern" in known else "hybrid_override_pattern"
    return Model(cpu.config(num_layers=len(PATTERN), **options), spec(), vocab_size=64,
                 max_sequence_length=16, **{named: PATTERN})


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
