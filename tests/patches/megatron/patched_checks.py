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
    def test_first_12_of_24_layers(self):
        config = layer_config(12)
        for number in range(1, 13):
            assert layer(config, number).recompute_mlp is True
        for number in range(13, 25):
            assert layer(config, number).recompute_mlp is False

    def test_all_layers_when_none(self):
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


class TestEngine:
    """recoup's C++ engine in place of tensor_parallel.checkpoint, on the patched Megatron."""

    @pytest.fixture(autouse=True)
    def engine(self):
        import recoup_megatron
        from megatron.core import tensor_parallel

        recoup_megatron.use_engine()
        yield
        tensor_parallel.checkpoint = tensor_parallel.checkpoint.recoup_replaces

    @pytest.mark.parametrize("bias", [False, True])
    def test_gradients_equal_the_unpatched_run(self, bias):
        gpt = cpu.model(recompute_modules=["core_attn", "mlp"] if not bias else ["mlp"],
                        recompute_mlp_num_layers=3, recompute_granularity="selective",
                        add_bias_linear=bias)
        calls = [0]
        gpt.decoder.layers[0].mlp.linear_fc2.register_forward_pre_hook(
            lambda *_: calls.__setitem__(0, calls[0] + 1))
        assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[bias])
        assert calls == [2]  # the rerun gets as far as fc2, and stops before its GEMM

    def test_megatrons_rng_tracker_is_restored(self):
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
        import recoup_megatron

        def noisy(x):
            with get_cuda_rng_tracker().fork():
                return torch.nn.functional.dropout(x * 2, 0.5) * 3

        def run(call):
            cpu.reset_tracker()
            x = torch.ones(64, requires_grad=True)
            y = call(x)
            noisy(y.detach())  # moves the tracker on between forward and backward
            after = get_cuda_rng_tracker().get_states()["model-parallel-rng"].clone()
            y.sum().backward()
            assert torch.equal(after, get_cuda_rng_tracker().get_states()["model-parallel-rng"])
            return [y.detach(), x.grad]

        assert cpu.same_bits(run(noisy), run(lambda x: recoup_megatron.checkpoint(
            noisy, x, context=recoup_megatron._tracker_states)))
