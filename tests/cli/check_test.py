"""recoup check: the policy's own parser, as a command."""
import glob
import os

import pytest

from conftest import ROOT


def lines(done):
    return [line.split(maxsplit=2) for line in done.stdout.splitlines()[2:]]


@pytest.fixture
def check(recoup, tmp_path):
    def run(text, *arguments, **environment):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return recoup("check", path, *arguments, **environment)
    return run


SELECTIVE = "recompute_granularity: selective\nrecompute_modules: [mlp]\n"


@pytest.mark.parametrize("path", sorted(glob.glob(os.path.join(ROOT, "configs", "*.yaml"))))
def test_the_configurations_of_the_repository(recoup, path):
    done = recoup("check", path, "--layers", 24, "--strict")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("layers")


def test_what_each_layer_does(check):
    done = check(SELECTIVE + "recompute_mlp_num_layers: 12\nmlp_activation_layers: 7-12\n", "--layers", 24)
    assert lines(done) == [["1-6", "dense", "mlp (level full)"], ["7-12", "dense", "mlp (level activation)"],
                           ["13-24", "dense", "nothing"]]


def test_layers_that_count_within_a_stage(check):
    text = SELECTIVE + "recompute_mlp_num_layers: 2\nrecompute_layer_scope: stage\n"
    done = check(text, "--layers", 12, "--pipeline-parallel", 3)
    assert done.stdout.splitlines()[2:] == ["1-2,5-6,9-10   dense  mlp (level full)",
                                            "3-4,7-8,11-12  dense  nothing"]


def test_a_model_file_says_how_many_and_which_are_moe(check, recoup, tmp_path):
    model = tmp_path / "config.json"
    model.write_text('{"model_type": "deepseek_v3", "num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 4,'
                     '"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 2, "vocab_size": 9}')
    done = check(SELECTIVE, "--model", model)
    assert lines(done) == [["1-2", "dense", "mlp (level full)"], ["3-6", "MoE", "nothing"]]
    done = check(SELECTIVE, "--model", model, "--layers", 7)
    assert done.returncode == 1 and "has 6 layers" in done.stderr


def test_moe_layers(check):
    done = check("recompute_granularity: selective\nrecompute_modules: [mlp, moe_act]\n", "--layers", 6, "--moe", "4-")
    assert lines(done) == [["1-3", "dense", "mlp (level full)"], ["4-6", "MoE", "moe_act"]]


def test_the_mlps_counted_without_moe_layers(check):
    done = check(SELECTIVE + "recompute_layer_scope: mlp\nrecompute_mlp_layers: 1,last\n",
                 "--layers", 6, "--moe", "1-6:2")
    assert lines(done) == [["1-5:2", "MoE", "nothing"], ["2,6", "dense", "mlp (level full)"],
                           ["4", "dense", "nothing"]]


def test_whole_layers(check):
    done = check("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 3\n", "--layers", 5)
    assert lines(done) == [["1-3", "dense", "the whole layer"], ["4-5", "dense", "nothing"]]


def test_the_environment_decides_as_in_a_run(check):
    done = check(SELECTIVE, "--layers", 4, RECOUP_RECOMPUTE_MLP_NUM_LAYERS="2")
    assert lines(done) == [["1-2", "dense", "mlp (level full)"], ["3-4", "dense", "nothing"]]
    assert "RECOUP_RECOMPUTE_MLP_NUM_LAYERS=2 decides" in done.stderr


@pytest.mark.parametrize("text, arguments, message", [
    (SELECTIVE + "recompute_mlp_num_layers: twelve\n", (), "x.yaml:3:1: recompute_mlp_num_layers: must be"),
    (SELECTIVE + "mlp_recompute_level: activation\n", ("--host", "megatron"), "x.yaml:3:1: mlp_recompute_level: this host"),
    ("recompute_granularity: selective\nrecompute_modules: [moe]\n", ("--host", "infinitrain"),
     'this host cannot recompute "moe"'),
    ("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 3\n", ("--host", "ggml"), "x.yaml:1:1"),
    (SELECTIVE, ("--layers", "4", "--moe", "all", "--strict"), "no layer of this model recomputes anything"),
    (SELECTIVE + "recompute_mlp_num_layers: 99\n", ("--layers", "4", "--strict"), "names layer 99, but there are 4"),
    (SELECTIVE, ("--layers", "4", "--moe", "7x"), "7x"),
])
def test_what_is_refused(check, text, arguments, message):
    done = check(text, *arguments)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.startswith("recoup: ")


def test_a_budget_is_for_hosts_that_keep_one(check):
    text = SELECTIVE + "recompute_memory_budget: 74GiB\n"
    assert check(text, "--layers", 4).returncode == 0
    assert "x.yaml:3:1: recompute_memory_budget: this host" in check(text, "--host", "ggml").stderr


def test_warnings_alone_pass(check):
    assert check(SELECTIVE + "recompute_mlp_num_layers: 99\n", "--layers", 4).returncode == 0


@pytest.mark.parametrize("arguments", [("check",), ("check", "/no/such", "--layers", "0"), ("chek",), (),
                                       ("check", "x", "--host", "jax"), ("check", "x", "--layers", "1e3")])
def test_wrong_usage(recoup, arguments):
    assert recoup(*arguments).returncode == 2


def test_a_file_that_is_not_there(recoup):
    done = recoup("check", "/no/such.yaml")
    assert done.returncode == 1 and "/no/such.yaml" in done.stderr and len(done.stderr.splitlines()) == 1


def test_version(recoup):
    done = recoup("--version")
    assert done.returncode == 0 and done.stdout.startswith("recoup 0.") and "contract 1" in done.stdout
