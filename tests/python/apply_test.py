"""recoup.apply on models of our own writing; model families of transformers: families_test.py."""
import copy
import io
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch

import recoup
from recoup._apply import Region
from small_model import TOKENS, Model, bytes_kept, gradients, same

LAYERS = 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(LAYERS)


def recomputed(model):
    return [isinstance(layer.mlp.__dict__.get("forward"), Region) for layer in model.layers]


def test_the_first_layers_and_back(model):
    expected = gradients(model)
    table = recoup.apply(model, mlp_num_layers=2)
    assert recomputed(model) == [True, True, False, False]
    assert same(gradients(model), expected)
    assert [row.recomputed for row in table] == [True, True, False, False]
    assert str(table).splitlines() == [
        "layer  module        class  MLP",
        "1      layers.0.mlp  MLP    recomputed",
        "2      layers.1.mlp  MLP    recomputed",
        "3      layers.2.mlp  MLP    kept",
        "4      layers.3.mlp  MLP    kept",
        "2 of 4 MLPs recomputed"]
    assert recoup.remove(model) == 2 and recomputed(model) == [False] * 4
    assert set(model.layers[0].mlp.__dict__) == set(model.layers[3].mlp.__dict__)
    assert same(gradients(model), expected)


@pytest.mark.parametrize("n", [1, 3, LAYERS])
def test_bytes_are_freed_as_computed(model, n):
    plain = bytes_kept(model)
    recoup.apply(model, mlp_num_layers=n)
    # gelu keeps fc1's output, fc2 its own input: [2 * 3, 64] floats each.
    assert plain - bytes_kept(model) == n * 2 * (2 * 3 * 64 * 4)


def test_a_file_an_expression_and_the_environment(model, tmp_path, monkeypatch):
    config = tmp_path / "x.yaml"
    config.write_text("recompute_granularity: selective\nrecompute_modules: [mlp]\n"
                      'recompute_mlp_layers: "2-4,!3"\n')
    recoup.apply(model, str(config))
    assert recomputed(model) == [False, True, False, True]
    recoup.remove(model)
    recoup.apply(model, mlp_layers="last")
    assert recomputed(model) == [False, False, False, True]
    recoup.remove(model)
    monkeypatch.setenv("RECOUP_CONFIG", str(config))
    recoup.apply(model)
    assert recomputed(model) == [False, True, False, True]


def test_the_log(model, caplog):
    with caplog.at_level(logging.INFO, logger="recoup"):
        recoup.apply(model, mlp_num_layers=1)
    lines = [r.getMessage() for r in caplog.records if "recompute_mlp=" in r.getMessage()]
    assert [line.split(",")[0].split()[:3] for line in lines] == [
        ["Layer", f"{n}:", f"recompute_mlp={n == 1}"] for n in range(1, 5)]


class TestCopies:
    """A closure as an instance attribute called the original's weights from the copy."""

    def check(self, model, other):
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(2)
        assert recomputed(other) == recomputed(model) == [True] * 4
        ours = gradients(other)
        assert all(p.grad is None for p in model.parameters())
        recoup.remove(other)
        assert recomputed(model) == [True] * 4
        assert same(ours, gradients(other))

    def test_deepcopy(self, model):
        recoup.apply(model, mlp_num_layers=4)
        self.check(model, copy.deepcopy(model))

    def test_deepcopy_of_one_mlp(self, model):
        recoup.apply(model, mlp_num_layers=4)
        mlp = copy.deepcopy(model.layers[0].mlp)
        mlp(torch.randn(2, 16)).sum().backward()
        assert all(p.grad is not None for p in mlp.parameters())
        assert all(p.grad is None for p in model.parameters())

    def test_pickle(self, model):
        recoup.apply(model, mlp_num_layers=4)
        self.check(model, pickle.loads(pickle.dumps(model)))

    def test_torch_save_of_the_whole_model(self, model):
        recoup.apply(model, mlp_num_layers=4)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        self.check(model, torch.load(file, weights_only=False))

    def test_state_dicts_are_the_same(self, model):
        before = list(model.state_dict())
        recoup.apply(model, mlp_num_layers=4)
        assert list(model.state_dict()) == before
        model.load_state_dict(Model(LAYERS).state_dict())


class TestOthersForwards:
    def test_a_forward_replaced_on_the_instance(self, model):
        def doubled(self, x):
            return type(self).forward(self, x) * 2

        mlp = model.layers[0].mlp
        mlp.forward = doubled.__get__(mlp)
        expected = gradients(model)
        recoup.apply(model, mlp_num_layers=4)
        assert same(gradients(model), expected)
        recoup.remove(model)
        assert mlp.forward.__func__ is doubled and same(gradients(model), expected)

    def test_a_class_changed_later(self, model):
        recoup.apply(model, mlp_num_layers=4)
        mlp = model.layers[0].mlp
        mlp.__class__ = type("Doubled", (type(mlp),), {
            "forward": lambda self, x: super(type(self), self).forward(x) * 2})
        ours = gradients(model)
        recoup.remove(model)
        assert same(ours, gradients(model))

    def test_hooks_run_once(self, model):
        recoup.apply(model, mlp_num_layers=4)
        calls = []
        model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
        gradients(model)
        assert calls == [1]

    def test_replaced_after_apply_cannot_be_removed(self, model):
        recoup.apply(model, mlp_num_layers=4)
        mlp = model.layers[0].mlp
        mlp._old_forward, mlp.forward = mlp.forward, lambda x: mlp._old_forward(x)  # as accelerate does
        with pytest.raises(ValueError, match="forward of a MLP has been replaced since recoup.apply"):
            recoup.remove(model)
        assert recomputed(model)[1:] == [True] * 3


class TestFinding:
    def test_by_keywords(self):
        class Odd(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = torch.nn.ModuleDict({f"b{i}": torch.nn.ModuleDict(
                    {"net": Model(1).layers[0].mlp}) for i in range(3)})

        odd = Odd()
        with pytest.raises(ValueError, match=r'no decoder layers in Odd.*layers="model.layers.\*", mlp="mlp"'):
            recoup.apply(odd, mlp_num_layers=1)
        table = recoup.apply(odd, mlp_num_layers=2, layers="blocks.b*", mlp="net")
        assert [(row.module, row.recomputed) for row in table] == [
            ("blocks.b0.net", True), ("blocks.b1.net", True), ("blocks.b2.net", False)]

    def test_numbers_follow_the_model_beyond_ten_layers(self):
        table = recoup.apply(Model(12), mlp_num_layers=3, layers="layers.*")
        assert [row.module for row in table if row.recomputed] == [f"layers.{i}.mlp" for i in range(3)]

    def test_a_path_within_the_layer(self, model):
        table = recoup.apply(model, mlp_num_layers=1, layers="layers.*", mlp="mlp.act")
        assert table[0].module == "layers.0.mlp.act"
        gradients(model)

    def test_errors(self, model):
        for keywords, message in (
                (dict(layers="decoder.*"), 'layers="decoder.*" names no module of Model'),
                (dict(layers="layers.*", mlp="feed"), r'layers.0 (Layer) has no module "feed"; it has norm, mlp')):
            with pytest.raises(ValueError) as error:
                recoup.apply(model, mlp_num_layers=1, **keywords)
            assert message in str(error.value)
        two = torch.nn.ModuleDict({"encoder": Model(2), "decoder": Model(2)})
        with pytest.raises(ValueError, match="several lists of layers: encoder.layers, decoder.layers"):
            recoup.apply(two, mlp_num_layers=1)
        assert len(recoup.apply(two, mlp_num_layers=1, layers="decoder.layers.*")) == 2

    def test_experts_are_left_alone(self):
        model = Model(4, experts=(2, 4))
        expected = gradients(model)
        table = recoup.apply(model, mlp_num_layers=3)
        assert [row.note for row in table] == [
            "recomputed", "experts: left alone", "recomputed", "experts: left alone"]
        assert same(gradients(model), expected)


class TestRefusals:
    def test_twice(self, model):
        recoup.apply(model, mlp_num_layers=1)
        with pytest.raises(ValueError, match=r"call recoup.remove\(model\) first"):
            recoup.apply(model, mlp_num_layers=2)
        assert recomputed(model) == [True, False, False, False]

    @pytest.mark.parametrize("options, message", [
        (dict(), "nothing says what to recompute"),
        (dict(mlp_num_layers=1, mlp_layers="all"), "mlp_num_layers and mlp_layers are both given"),
        (dict(mlp_num_layers=-1), "recompute_mlp_num_layers"),
        (dict(mlp_num_layers="two"), "recompute_mlp_num_layers"),
        (dict(mlp_layers="x'y"), "recompute_mlp_layers"),
        (dict(config="/no/such/file.yaml"), "/no/such/file.yaml"),
    ])
    def test_options(self, model, options, message, monkeypatch):
        monkeypatch.delenv("RECOUP_CONFIG", raising=False)
        with pytest.raises(ValueError, match=message):
            recoup.apply(model, **options)
        assert recomputed(model) == [False] * 4

    @pytest.mark.parametrize("text, message", [
        ("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 2\n", "selective|full"),
        ("recompute_granularity: selective\nrecompute_modules: [mlp, core_attn]\n", "core_attn"),
        ("recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layer: 1\n",
         "recompute_mlp_num_layers"),
    ])
    def test_files(self, model, tmp_path, text, message):
        config = tmp_path / "x.yaml"
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            recoup.apply(model, str(config))
        assert recomputed(model) == [False] * 4

    def test_checkpoint_wrapper(self, model):
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        expected = gradients(model)
        model.layers[0] = checkpoint_wrapper(model.layers[0])
        with pytest.raises(ValueError, match="recomputed twice"):
            recoup.apply(model, mlp_num_layers=4)
        recoup.apply(model, mlp_num_layers=4, nested=True)
        assert same(gradients(model), expected)


@pytest.mark.parametrize("case", ["ddp", "fsdp2", "fsdp2 before", "fsdp2 of mlps"])
def test_two_ranks(case):
    """Two processes over gloo: gradients equal to the same training without recoup."""
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         os.path.join(here, "two_ranks.py"), case], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(
            [here, os.path.dirname(os.path.dirname(recoup.__file__))])})
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("equal") == 2, done.stdout


class TestLevelActivation:
    """fc1's output is kept, and what follows it runs again."""

    def test_gradients_and_bytes(self, model):
        expected, plain = gradients(model), bytes_kept(model)
        table = recoup.apply(model, mlp_num_layers=3, mlp_level="activation")
        assert [row.note for row in table] == ["recomputed from fc1's output on"] * 3 + ["kept"]
        assert same(gradients(model), expected)
        # fc2's input alone: gelu's is fc1's output.
        assert plain - bytes_kept(model) == 3 * (2 * 3 * 64 * 4)

    def test_no_gemm_runs_again(self, model):
        recoup.apply(model, mlp_num_layers=4, mlp_level="activation")
        calls = []
        for layer in model.layers:
            layer.mlp.fc1.register_forward_hook(lambda *_: calls.append("fc1"))
            layer.mlp.act.register_forward_hook(lambda *_: calls.append("act"))
        gradients(model)
        assert calls.count("fc1") == 4 and calls.count("act") == 8
        assert all(type(layer.mlp.fc1) is torch.nn.Linear for layer in model.layers)

    def test_a_file_says_it(self, model, tmp_path):
        expected = gradients(model)
        config = tmp_path / "x.yaml"
        config.write_text("recompute_granularity: selective\nrecompute_modules: [mlp]\n"
                          "recompute_mlp_layers: 1-3\nmlp_activation_layers: 2\n")
        table = recoup.apply(model, str(config))
        assert [row.note for row in table] == ["recomputed", "recomputed from fc1's output on", "recomputed", "kept"]
        assert same(gradients(model), expected)

    def test_copies_pickles_and_back(self, model):
        recoup.apply(model, mlp_num_layers=4, mlp_level="activation")
        gradients(model)
        model.zero_grad()
        TestCopies().check(model, copy.deepcopy(model))
        TestCopies().check(model, pickle.loads(pickle.dumps(model)))
        assert recoup.remove(model) == 4

    def test_a_projection_replaced_later(self, model):
        """As PEFT does."""
        class Adapted(torch.nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base, self.down, self.up = base, torch.nn.Linear(16, 2), torch.nn.Linear(2, 64)

            def forward(self, x):
                return self.base(x) + self.up(self.down(x))

        recoup.apply(model, mlp_num_layers=4, mlp_level="activation")
        for layer in model.layers:
            layer.mlp.fc1 = Adapted(layer.mlp.fc1)
        ours = gradients(model)
        recoup.remove(model)
        assert same(ours, gradients(model))

    def test_threads_of_one_model(self, model):
        import threading
        expected = torch.autograd.grad(model(TOKENS), list(model.parameters()))
        recoup.apply(model, mlp_num_layers=4, mlp_level="activation")
        wrong = []

        def steps():
            for _ in range(10):
                got = torch.autograd.grad(model(TOKENS), list(model.parameters()))
                if not same(got, expected):
                    wrong.append(1)

        threads = [threading.Thread(target=steps) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and all(type(layer.mlp.fc1) is torch.nn.Linear for layer in model.layers)

    def test_an_mlp_of_another_shape_is_refused(self, model):
        for layer in model.layers:
            layer.mlp.net, layer.mlp.fc1 = layer.mlp.fc1, None
            del layer.mlp.fc1
        with pytest.raises(ValueError, match=r"layers.0.mlp \(MLP\): level activation cannot be had"):
            recoup.apply(model, mlp_num_layers=2, mlp_level="activation")
        assert recomputed(model) == [False] * 4
        with pytest.raises(ValueError, match="mlp_level= goes with mlp_num_layers="):
            recoup.apply(model, "x.yaml", mlp_level="activation")
        with pytest.raises(recoup.RecoupError, match="mlp_recompute_level.*full or activation"):
            recoup.apply(model, mlp_num_layers=1, mlp_level="most")

    def test_an_mlp_that_does_not_call_it_with_its_input_is_an_error(self, model):
        mlp = model.layers[0].mlp
        mlp.__class__ = type("Scaled", (type(mlp),), {"forward": lambda self, x: self.fc2(self.act(self.fc1(x * 2)))})
        recoup.apply(model, mlp_num_layers=1, mlp_level="activation")
        with pytest.raises(RuntimeError, match="recoup: layer 1 mlp: level activation needs an MLP whose forward calls "
                                               "fc1 once, with its own input; that of Scaled does not so with fc1"):
            model(TOKENS)
        assert type(mlp.fc1) is torch.nn.Linear
