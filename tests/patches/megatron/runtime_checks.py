"""recoup.megatron on an unpatched megatron-core; run by megatron_versions.py, one process a version and
engine. Tests are numbered by the lines of the table that they prove (test_row_NN...)."""
import copy
import dataclasses
import logging
import os
import pickle

import recoup.megatron  # noqa: F401  the script's first line

import cpu_megatron as cpu
import pytest
import torch
from megatron.core.transformer import TransformerConfig, TransformerLayer
from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.core.transformer.transformer_layer import BaseTransformerLayer, TransformerLayerSubmodules

from recoup.megatron import _host, _log
from recoup.policy import known_modules

REFERENCE = torch.load(os.environ["MEGATRON_REFERENCE"])
SELECTIVE = dict(recompute_granularity="selective")
MLP = dict(recompute_granularity="selective", recompute_modules=["mlp"])
VARIABLE = "RECOUP_RECOMPUTE_MLP_NUM_LAYERS"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("RECOUP_CONFIG", VARIABLE, "RECOUP_MODELS"):
        monkeypatch.delenv(name, raising=False)
    _log.once.cache_clear()


@pytest.fixture
def says(monkeypatch, tmp_path):
    """Lets recoup's own configuration say something: YAML text, or the environment's N."""
    def say(text=None, n=None):
        if text is not None:
            path = tmp_path / f"{abs(hash(text))}.yaml"
            path.write_text(text)
            monkeypatch.setenv("RECOUP_CONFIG", str(path))
        if n is not None:
            monkeypatch.setenv(VARIABLE, str(n))
    return say


def mlp(gpt):
    return [layer.recompute_mlp for layer in gpt.decoder.layers]


def attention(gpt):
    return [layer.self_attention.checkpoint_core_attention for layer in gpt.decoder.layers]


def first(n, of=cpu.LAYERS):
    return [number <= n for number in range(1, of + 1)]


def lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "recoup"]


MLP_2 = "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 2\n"
NOWHERE = "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_layers: 9-12\n"


def test_the_yaml_decides_for_each_layer(says, caplog):
    says("recompute_granularity: selective\nrecompute_modules: [core_attn, mlp]\n"
         "recompute_core_attn_num_layers: 3\nrecompute_mlp_num_layers: 2\n")
    with caplog.at_level(logging.INFO, logger="recoup"):
        gpt = cpu.model()
    assert mlp(gpt) == first(2) and attention(gpt) == first(3)
    assert gpt.config.recompute_granularity == "selective"
    assert gpt.config.recompute_modules == ["core_attn", "mlp"]
    assert [line for line in lines(caplog) if "recompute_mlp=" in line] == [
        f"Layer {n}: recompute_mlp={n <= 2}" for n in range(1, 5)]
    assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[0])


class TestSpecification:
    """Programmatic use, as the specification writes it."""

    @pytest.mark.parametrize("n", [12, None])
    def test_first_n_of_24_layers(self, n):
        config = TransformerConfig(num_layers=24, hidden_size=256, num_attention_heads=4,
                                   ffn_hidden_size=1024, recompute_granularity="selective",
                                   recompute_modules=["mlp"], recompute_mlp_num_layers=n)
        for number in range(1, 25):
            layer = TransformerLayer(config=config, submodules=TransformerLayerSubmodules(),
                                     layer_number=number)
            # Without an MLP of its own nothing is recomputed: what it decided is what it reads.
            assert ("mlp" in layer.config.recompute_modules) == (n is None or number <= n)

    def test_the_models_layers(self):
        assert mlp(cpu.model(recompute_mlp_num_layers=3, **MLP)) == first(3)
        assert mlp(cpu.model(recompute_mlp_layers="!2", **MLP)) == [True, False, True, True]
        gpt = cpu.model(recompute_core_attn_num_layers=1, **SELECTIVE)
        assert attention(gpt) == first(1) and mlp(gpt) == first(0)

    @dataclasses.dataclass
    class Derived(TransformerConfig):
        mine: int = 1

    def test_the_field_survives(self):
        options = dict(num_layers=4, hidden_size=16, num_attention_heads=2, recompute_mlp_num_layers=3,
                       **MLP)
        for cls in (TransformerConfig, MLATransformerConfig, self.Derived):
            config = cls(**options)
            for twin in (config, dataclasses.replace(config), copy.deepcopy(config), copy.copy(config),
                         pickle.loads(pickle.dumps(config))):
                assert type(twin) is cls and twin.recompute_mlp_num_layers == 3
                assert dataclasses.asdict(twin)["recompute_mlp_num_layers"] == 3
        assert dataclasses.replace(config, recompute_mlp_num_layers=1).recompute_mlp_num_layers == 1
        assert "recompute_mlp_num_layers" in [f.name for f in dataclasses.fields(MLATransformerConfig)]


@pytest.mark.parametrize("options, message", [
    (dict(recompute_mlp_num_layers=1), "--recompute-mlp-num-layers requires --recompute-granularity selective"),
    (dict(recompute_mlp_num_layers=1, recompute_granularity="full", recompute_method="block",
          recompute_num_layers=1), "--recompute-mlp-num-layers requires --recompute-granularity selective"),
    (dict(recompute_mlp_num_layers=1, **SELECTIVE), '--recompute-mlp-num-layers requires "mlp" in --recompute-modules'),
    (dict(recompute_mlp_num_layers=0, **MLP), "--recompute-mlp-num-layers must be >= 1"),
    (dict(recompute_mlp_num_layers=-1, **MLP), "--recompute-mlp-num-layers must be >= 1"),
    (dict(recompute_mlp_num_layers="twelve", **MLP),
     '--recompute-mlp-num-layers must be an integer >= 1, not "twelve"'),
    (dict(recompute_mlp_num_layers=1, recompute_mlp_layers="1", **MLP),
     "--recompute-mlp-num-layers and --recompute-mlp-layers say the same; give one of the two"),
    (dict(recompute_layer_scope="rank", recompute_mlp_num_layers=1, **MLP),
     "--recompute-layer-scope must be one of global, stage, mlp, not 'rank'"),
], ids=["granularity", "full", "modules", "zero", "negative", "word", "both", "scope"])
def test_bad_input_is_an_error_before_the_model(options, message, says):
    with pytest.raises(ValueError) as error:
        cpu.config(**options)
    assert str(error.value) == message


@pytest.mark.parametrize("n", ["-1", "twelve", "2.5"])
def test_a_bad_environment_is_an_error_before_the_model(n, says):
    says(n=n)
    with pytest.raises(ValueError) as error:
        cpu.config()
    assert str(error.value) == (f"environment variable {VARIABLE}: --recompute-mlp-num-layers must be an integer "
                                f'>= 0 (0: no layer), not "{n}"')


LISTED = "recompute_granularity: selective\nrecompute_modules: [mlp]\n"
FULL = dict(recompute_granularity="full", recompute_method="block", recompute_num_layers=1)


@pytest.mark.parametrize("before, options, n", [
    (LISTED, MLP, 0), (LISTED, MLP, -1), (LISTED, MLP, "twelve"), (LISTED, MLP, 2.5), ("", {}, 2),
    ("recompute_granularity: selective\n", SELECTIVE, 2),
    ("".join(f"{name}: {value}\n" for name, value in FULL.items()), FULL, 2)])
def test_a_file_is_refused_in_the_words_of_the_code(before, options, n, says):
    with pytest.raises(ValueError) as of_the_code:
        cpu.config(recompute_mlp_num_layers=n, **options)
    says(f"{before}recompute_mlp_num_layers: {n}\n")
    with pytest.raises(ValueError) as of_the_file:
        cpu.config()
    place = f"{os.environ['RECOUP_CONFIG']}:{before.count(chr(10)) + 1}:1: "
    assert str(of_the_file.value) == place + str(of_the_code.value)


def test_a_module_that_this_megatron_lacks(says):
    says("recompute_granularity: selective\nrecompute_modules: [mlp, mpl]\n")
    with pytest.raises(ValueError, match='"mpl" is no module to recompute; allowed: core_attn, mlp,.*did you mean "mlp"'):
        cpu.config()
    missing = sorted(set(known_modules()) - set(_host.modules()))
    if not missing:
        pytest.skip("this version has every module that recoup knows")
    says(f"recompute_granularity: selective\nrecompute_modules: [mlp, {missing[0]}]\n")
    with pytest.raises(ValueError, match=f'this Megatron-LM cannot recompute "{missing[0]}"; it can recompute core_attn'):
        cpu.config()
    with pytest.raises((AssertionError, ValueError), match=missing[0]):
        cpu.config(recompute_modules=[missing[0]], **SELECTIVE)


def test_more_layers_than_there_are_is_a_warning(caplog, says):
    cpu.config(recompute_mlp_num_layers=9, **MLP)
    says(n=9)
    cpu.config()
    says(MLP_2.replace("2", "9"))
    cpu.config(recoup_config=os.environ["RECOUP_CONFIG"])
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "recoup"]
    assert sum(line.endswith("names layer 9, but there are 4") for line in warnings) >= 2


@pytest.mark.parametrize("how", [dict(n=0), dict(text=""), dict(text=NOWHERE)], ids=["n0", "empty", "nowhere"])
@pytest.mark.parametrize("modules, kept", [(None, ["core_attn"]), (["core_attn", "mlp"], ["core_attn"]),
                                           (["core_attn"], ["core_attn"])], ids=["none", "both", "attention"])
def test_row_01_what_recoup_says_nothing_of_stays(how, modules, kept, says):
    says(**how)
    gpt = cpu.model(recompute_modules=modules, **SELECTIVE)
    limited = how != dict(text="")
    assert attention(gpt) == first(4)
    assert mlp(gpt) == first(4 if not limited and "mlp" in (modules or ()) else 0)
    assert gpt.config.recompute_modules == (kept if limited else modules or ["core_attn"])
    none = cpu.model()
    assert mlp(none) == first(0) and none.config.recompute_granularity is None


def test_row_02_and_03_the_quick_hack_adds_mlp_to_the_jobs_modules(says, caplog):
    says(n=2)
    for modules in (None, ["core_attn"], ["core_attn", "mlp"]):
        gpt = cpu.model(recompute_modules=modules, **SELECTIVE)
        assert mlp(gpt) == first(2) and attention(gpt) == first(4)
        assert gpt.config.recompute_modules == ["core_attn", "mlp"]
    assert mlp(cpu.model()) == first(2)
    assert cpu.same_bits(cpu.gradients(gpt), REFERENCE[0])
    assert sum("decides which layers recompute their MLP" in line for line in lines(caplog)) == 1


def test_row_04_the_stage_is_counted(says, monkeypatch):
    says(MLP_2 + "recompute_layer_scope: stage\n")
    from megatron.core.transformer import transformer_block, transformer_layer

    for module in (transformer_block, transformer_layer):
        monkeypatch.setattr(module, "get_transformer_layer_offset", lambda *_a, **_k: 4, raising=False)
    monkeypatch.setattr(transformer_block, "get_num_layers_to_build", lambda *_a, **_k: 4)
    for options in ({}, dict(recompute_layer_scope="stage", recompute_mlp_num_layers=2, **MLP)):
        gpt = cpu.model(num_layers=8, **options)
        assert [layer.layer_number for layer in gpt.decoder.layers] == [5, 6, 7, 8]
        assert mlp(gpt) == first(2)
        says(MLP_2)
    assert mlp(cpu.model(num_layers=8)) == first(0)  # global


def test_row_04_distributed_saved_activations(says):
    says("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 2\n"
         "distribute_saved_activations: true\n")
    assert cpu.config().distribute_saved_activations is True
    says(MLP_2 + "distribute_saved_activations: true\n")
    with pytest.raises(ValueError, match="distribute_saved_activations.*full"):
        cpu.config()


@pytest.mark.parametrize("method, n", [("uniform", 1), ("uniform", 2), ("block", 2), ("block", 8)])
def test_row_05_full_is_passed_on_as_it_was_written(method, n, says):
    says(f"recompute_granularity: full\nrecompute_method: {method}\nrecompute_num_layers: {n}\n")
    full = dict(recompute_granularity="full", recompute_method=method, recompute_num_layers=n)
    for own in ({}, full):
        config = cpu.config(**own)
        assert {name: getattr(config, name) for name in full} == full


def test_row_06_a_second_model_keeps_its_own_options(says, caplog, monkeypatch):
    says(MLP_2)
    assert mlp(cpu.model()) == first(2)
    tower = cpu.config(num_layers=2, recompute_granularity="full", recompute_method="uniform",
                       recompute_num_layers=1)
    assert tower.recompute_granularity == "full"
    warning, = [r.getMessage() for r in caplog.records
                if r.levelno == logging.WARNING and r.name == "recoup"]
    assert "TransformerConfig of 2 layers sets recompute_granularity=full" in warning
    assert mlp(cpu.model(num_layers=3, recompute_mlp_num_layers=1, **MLP)) == first(1, 3)
    assert mlp(cpu.model(num_layers=3, recoup_config="off")) == first(0, 3)
    monkeypatch.setenv("RECOUP_MODELS", "VisionConfig, MLATransformerConfig")
    assert mlp(cpu.model()) == first(0)
    assert any("TransformerConfig of 4 layers recomputes mlp" in line for line in lines(caplog))


def test_row_11_multi_token_prediction_comes_after_the_last_layer(caplog):
    import inspect

    if "is_mtp_layer" not in inspect.signature(TransformerLayer.__init__).parameters:
        from recoup.megatron._layers import _in_mtp

        token = _in_mtp.set(True)
        more = {}
    else:
        token, more = None, dict(is_mtp_layer=True)

    def mtp(**options):
        config = cpu.config(**options)
        spec = cpu.get_gpt_layer_local_spec()
        return [TransformerLayer(config, spec.submodules, layer_number=number, **more).recompute_mlp
                for number in (1, 2)]
    try:
        assert mtp(recompute_mlp_num_layers=4, **MLP) == [False, False]
        assert mtp(recompute_mlp_layers="!2", **MLP) == [True, True]  # no end: all that come after
        assert mtp(**MLP) == [True, True]
        assert mtp(recompute_mlp_num_layers=1, recompute_mtp_modules=["mlp"], **MLP) == [True, True]
    finally:
        if token:
            _in_mtp.reset(token)
    assert "MTP layer 1: recompute_mlp=False" in lines(caplog)


@pytest.mark.parametrize("module", _host.modules())
def test_row_13_every_module_of_the_hosts_list_can_be_limited(module):
    if module in _host.NOT_BY_LAYER:
        pytest.skip("recomputed by whole blocks")
    from recoup.megatron import _fields, _plan

    config = cpu.config()
    config.recompute_granularity, config.recompute_modules = "selective", [module, "core_attn"]
    for field, value in zip(_fields.limits(module), (2, "3-")):
        setattr(config, field, value)
        chosen = [n for n in range(1, 5) if module in _plan.of_layer(config, n)]
        assert chosen == ([1, 2] if value == 2 else [3, 4])
        setattr(config, field, None)


def test_row_17_recoup_adds_to_what_the_job_says(says):
    says(MLP_2)
    for modules in (["moe"], [], ["core_attn", "layernorm"]):
        gpt = cpu.model(recompute_modules=modules)  # a recipe's default without a granularity
        assert mlp(gpt) == first(2) and attention(gpt) == first(0)
    gpt = cpu.model(recompute_modules=["core_attn", "layernorm"], **SELECTIVE)
    assert mlp(gpt) == first(2) and attention(gpt) == first(4)
    assert gpt.config.recompute_modules == ["core_attn", "layernorm", "mlp"]


def test_row_09_and_18_who_asks_later_gets_the_layers_answer():
    gpt = cpu.model(recompute_mlp_num_layers=2, recompute_modules=["core_attn", "mlp"], **SELECTIVE)
    for layer in gpt.decoder.layers:
        expected = ["core_attn", "mlp"] if layer.layer_number <= 2 else ["core_attn"]
        twins = [layer.config, layer.mlp.config, copy.deepcopy(layer.config),
                 pickle.loads(pickle.dumps(layer.config)), dataclasses.replace(layer.config)]
        for config in twins:
            assert config.recompute_modules == expected and config.num_layers == 4
            assert isinstance(config, TransformerConfig)
    assert gpt.config.recompute_modules == ["core_attn", "mlp"]
    gpt.config.deterministic_mode = "set later"
    assert gpt.decoder.layers[3].config.deterministic_mode == "set later"


def test_row_09_moe_in_cuda_graphs():
    from megatron.core.transformer import transformer_layer

    graphed = getattr(transformer_layer, "MoETransformerLayer", None)
    if not hasattr(graphed, "transition_cudagraph_scope"):
        pytest.skip("no CUDA graphs of MoE layers in this version")
    gpt = cpu.model(num_moe_experts=2, recompute_modules=["moe"], recompute_moe_num_layers=2, **SELECTIVE)
    assert [layer.mlp.moe_layer_recompute for layer in gpt.decoder.layers] == first(2)
    assert ["moe" in layer.config.recompute_modules for layer in gpt.decoder.layers] == first(2)


class ReadsLater(TransformerLayer):
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.read = "mlp" in config.recompute_modules


class OwnLayer(BaseTransformerLayer, torch.nn.Module):
    def __init__(self, config, submodules=None, layer_number=1, **_):
        torch.nn.Module.__init__(self)
        self.layer_number, self.read = layer_number, "mlp" in config.recompute_modules


def test_row_18_a_jobs_own_layer_classes():
    from megatron.core.transformer.spec_utils import ModuleSpec

    config = cpu.config(recompute_mlp_num_layers=2, **MLP)
    spec = cpu.get_gpt_layer_local_spec()
    layers = [ReadsLater(config, spec.submodules, layer_number=n) for n in range(1, 5)]
    assert [(layer.recompute_mlp, layer.read) for layer in layers] == [(on, on) for on in first(2)]
    gpt = cpu.GPTModel(config, ModuleSpec(module=OwnLayer), vocab_size=64, max_sequence_length=16)
    assert [layer.read for layer in gpt.decoder.layers] == first(2)


def test_row_21_what_megatron_cannot_do_is_refused(says):
    says(MLP_2 + "mlp_recompute_level: activation\n")
    with pytest.raises(ValueError, match="cannot recompute the activation alone"):
        cpu.config()
    says(MLP_2.replace("recompute_mlp_num_layers: 2", "recompute_memory_budget: 74GiB"))
    with pytest.raises(ValueError, match="recompute_memory_budget: this Megatron-LM cannot keep a memory budget"):
        cpu.config()
    says("recompute_granularity: selective\nrecompute_modules: [mlp, nothing]\n")
    with pytest.raises(ValueError, match="nothing"):
        cpu.config()


def test_moe_layers_and_dense_layers_between_them(says, caplog):
    says(n=4)
    gpt = cpu.model(num_moe_experts=2)
    assert mlp(gpt) == first(0)
    assert sum("is an MoE layer: no MLP is recomputed" in line for line in lines(caplog)) == 1


def test_row_12_layers_without_an_mlp_are_not_wrapped():
    config = cpu.config(recompute_mlp_num_layers=2, **MLP)
    layer = TransformerLayer(config, TransformerLayerSubmodules(), layer_number=1)
    assert layer.recompute_mlp is False


def test_row_22_offloading_of_activations_beside_recompute(says):
    if "fine_grained_activation_offloading" not in TransformerConfig.__dataclass_fields__:
        pytest.skip("no fine-grained activation offloading in this version")
    import inspect

    offload = dict(fine_grained_activation_offloading=True)
    # Megatron's own refusals see what recoup's file asks for.
    refused = inspect.getsource(inspect.unwrap(TransformerConfig.__post_init__))
    says("recompute_granularity: selective\nrecompute_modules: [moe]\nrecompute_moe_num_layers: 2\n")
    moe = dict(num_moe_experts=2, offload_modules=["moe_act"], **offload)
    if "while recomputing the entire MoE layer" in refused:
        with pytest.raises(AssertionError, match="while recomputing the entire MoE layer"):
            cpu.config(**moe)
    # What it allows works by layer: norms of the layers that recompute their MLP, and of the others.
    says(MLP_2)
    try:
        gpt = cpu.model(offload_modules=["mlp_norm", "attn_norm"], **offload)
    except (AssertionError, ValueError) as error:
        pytest.fail(f"Megatron allows norms to be offloaded beside recomputed MLPs: {error}")
    assert mlp(gpt) == first(2)
    assert [layer.offload_mlp_norm for layer in gpt.decoder.layers] == first(4)
