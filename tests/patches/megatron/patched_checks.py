"""Checks of a patched megatron-core; run by megatron_versions.py, once for each version."""
import logging
import os

import cpu_megatron as cpu
import pytest
import torch
from megatron.core.transformer import TransformerConfig, TransformerLayer
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

REFERENCE = torch.load(os.environ["MEGATRON_REFERENCE"])


def layer_config(n):
    return TransformerConfig(num_layers=24, hidden_size=256, num_attention_heads=4,
                             ffn_hidden_size=1024, recompute_granularity="selective",
                             recompute_modules=["mlp"], recompute_mlp_num_layers=n)


def layer(config, number):
    return TransformerLayer(config=config, submodules=TransformerLayerSubmodules(), layer_number=number)


# The specification's unit test. (Its layers lack `submodules`, which every version requires.)
class TestSpecification:
    def test_row_15_first_12_of_24_layers(self):
        config = layer_config(12)
        for number in range(1, 13):
            assert layer(config, number).recompute_mlp is True
        for number in range(13, 25):
            assert layer(config, number).recompute_mlp is False

    def test_row_15_all_layers_when_none(self):
        config = layer_config(None)
        for number in range(1, 25):
            assert layer(config, number).recompute_mlp is True


class TestValidation:
    @pytest.mark.parametrize("options, message", [
        (dict(recompute_mlp_num_layers=1),
         "--recompute-mlp-num-layers requires --recompute-granularity selective"),
        (dict(recompute_mlp_num_layers=1, recompute_granularity="full", recompute_method="block",
              recompute_num_layers=1),
         "--recompute-mlp-num-layers requires --recompute-granularity selective"),
        (dict(recompute_mlp_num_layers=1, recompute_granularity="selective"),
         '--recompute-mlp-num-layers requires "mlp" in --recompute-modules'),
        (dict(recompute_mlp_num_layers=1, recompute_granularity="selective",
              recompute_modules=["core_attn"]),
         '--recompute-mlp-num-layers requires "mlp" in --recompute-modules'),
        (dict(recompute_mlp_num_layers=0, recompute_granularity="selective",
              recompute_modules=["mlp"]),
         "--recompute-mlp-num-layers must be >= 1"),
    ])
    def test_each_rule(self, options, message):
        with pytest.raises(ValueError) as error:
            cpu.config(**options)
        assert str(error.value) == message


class TestModel:
    options = dict(recompute_granularity="selective")

    def test_core_attention_stays_on_every_layer(self):
        gpt = cpu.model(recompute_modules=["core_attn", "mlp"], recompute_mlp_num_layers=2,
                        **self.options)
        assert [one.recompute_mlp for one in gpt.decoder.layers] == [True, True, False, False]
        assert all(one.self_attention.checkpoint_core_attention for one in gpt.decoder.layers)

    def test_moe_layers_are_untouched(self):
        gpt = cpu.model(recompute_modules=["mlp"], recompute_mlp_num_layers=4, num_moe_experts=2,
                        **self.options)
        assert [one.recompute_mlp for one in gpt.decoder.layers] == [False] * 4

    def test_log_line(self, caplog):
        with caplog.at_level(logging.INFO):
            cpu.model(recompute_modules=["mlp"], recompute_mlp_num_layers=1, **self.options)
        lines = [r.getMessage() for r in caplog.records if "recompute_mlp=" in r.getMessage()]
        assert lines == [f"Layer {n}: recompute_mlp={n <= 1}" for n in range(1, 5)]

    @pytest.mark.parametrize("n", [1, 2, None])
    def test_gradients_equal_the_unpatched_run(self, n):
        gpt = cpu.model(recompute_modules=["mlp"], recompute_mlp_num_layers=n, **self.options)
        assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[0])

class TestOtherModules:
    """The specification's "Extending to Other Modules": row 14 of the table."""

    def test_row_14_core_attention(self):
        gpt = cpu.model(recompute_modules=["core_attn", "mlp"], recompute_core_attn_num_layers=3,
                        recompute_mlp_num_layers=1, **TestModel.options)
        assert [one.recompute_mlp for one in gpt.decoder.layers] == [True, False, False, False]
        assert [one.self_attention.checkpoint_core_attention for one in gpt.decoder.layers] == [
            True, True, True, False]
        assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[0])

    def test_row_14_moe(self):
        gpt = cpu.model(recompute_modules=["moe"], recompute_moe_num_layers=2, num_moe_experts=2,
                        **TestModel.options)
        assert [one.mlp.moe_layer_recompute for one in gpt.decoder.layers] == [True, True, False, False]
        assert ["moe" in one.config.recompute_modules for one in gpt.decoder.layers] == [
            True, True, False, False]

    def test_row_14_bad_values(self):
        for options, message in [
                (dict(recompute_moe_num_layers=1), '--recompute-moe-num-layers requires "moe" in --recompute-modules'),
                (dict(recompute_core_attn_num_layers=0), "--recompute-core-attn-num-layers must be >= 1"),
                (dict(recompute_core_attn_num_layers="two"),
                 "--recompute-core-attn-num-layers must be an integer >= 1, not 'two'")]:
            with pytest.raises(ValueError) as error:
                cpu.config(**options, **TestModel.options)
            assert str(error.value) == message


class TestEnvironment:
    """Row 20: the quick hack in a patched tree."""

    @pytest.mark.parametrize("modules", [None, ["core_attn"], ["core_attn", "mlp"]])
    def test_row_20_the_environment_limits_the_mlp(self, modules, monkeypatch):
        monkeypatch.setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "2")
        gpt = cpu.model(recompute_modules=modules, **TestModel.options)
        assert [one.recompute_mlp for one in gpt.decoder.layers] == [True, True, False, False]
        assert all(one.self_attention.checkpoint_core_attention for one in gpt.decoder.layers)
        assert [one.recompute_mlp for one in cpu.model().decoder.layers] == [True, True, False, False]

    def test_row_20_zero_takes_the_mlp_out(self, monkeypatch):
        monkeypatch.setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "0")
        gpt = cpu.model(recompute_modules=["core_attn", "mlp"], **TestModel.options)
        assert not any(one.recompute_mlp for one in gpt.decoder.layers)
        assert gpt.config.recompute_modules == ["core_attn"]
        assert cpu.config().recompute_granularity is None

    def test_row_20_bad_values_and_what_cannot_be_honoured(self, monkeypatch, caplog):
        monkeypatch.setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "twelve")
        with pytest.raises(ValueError, match='RECOUP_RECOMPUTE_MLP_NUM_LAYERS: must be an integer >= 0 .*"twelve"'):
            cpu.config()
        monkeypatch.delenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS")
        monkeypatch.setenv("RECOUP_CONFIG", "x.yaml")
        cpu.config()
        assert any("RECOUP_CONFIG is not read" in r.getMessage() for r in caplog.records)


# From here on the run-time mode is there too, late: it works, and it decides.
class TestBothModes:
    @pytest.fixture(autouse=True)
    def runtime(self):
        import recoup.megatron  # noqa: F401

    def test_row_16_one_decides_and_the_other_is_named(self, monkeypatch, caplog, tmp_path):
        yaml = tmp_path / "x.yaml"
        yaml.write_text("recompute_granularity: selective\nrecompute_modules: [mlp]\n"
                        "recompute_mlp_num_layers: 3\n")
        monkeypatch.setenv("RECOUP_CONFIG", str(yaml))
        with caplog.at_level(logging.INFO):
            gpt = cpu.model(recompute_modules=["mlp"], recompute_mlp_num_layers=1, **TestModel.options)
        assert [one.recompute_mlp for one in gpt.decoder.layers] == [True, False, False, False]
        assert any(f"recompute_mlp_num_layers=1 of the job decides which layers recompute mlp; {yaml} is set "
                   "aside" in r.getMessage() for r in caplog.records)
        assert [one.recompute_mlp for one in cpu.model().decoder.layers] == [True, True, True, False]
        monkeypatch.setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "2")
        for own in (1, 4):
            gpt = cpu.model(recompute_modules=["mlp"], recompute_mlp_num_layers=own, **TestModel.options)
            assert [one.recompute_mlp for one in gpt.decoder.layers] == [True, True, False, False]
