"""The trainer in 1, 2 and 4 real processes, over Gloo."""
import os

import pytest

from conftest import run_trainer

LAYERS = 4
EXACT = ("--dropout", "0")
ALL = {"RECOUP_RECOMPUTE_MLP_NUM_LAYERS": str(LAYERS)}


@pytest.fixture(scope="module")
def alone(text):
    return run_trainer(text, *EXACT, plugin=False)


@pytest.fixture(scope="module", params=[2, 4])
def plain(request, text):
    """(ranks, the run without recompute)"""
    return request.param, run_trainer(text, *EXACT, "--heads", "4", "--tensor-parallel", str(request.param),
                                      plugin=False, processes=request.param)


def test_tensor_parallel_losses_are_those_of_one_rank(text, plain):
    one = run_trainer(text, *EXACT, "--heads", "4", plugin=False)
    assert plain[1]["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert plain[1]["losses"] != one["losses"][::-1]


def test_recompute_changes_no_bit_and_repeats_no_collective(text, plain):
    ranks, without = plain
    report = run_trainer(text, *EXACT, "--heads", "4", "--tensor-parallel", str(ranks), processes=ranks,
                         environment=ALL)
    assert report["losses"] == without["losses"]
    # Two all-reduces a layer in forward (attention's output, fc2) and two in backward (the gradients of
    # what goes into attention and fc1), three steps.
    assert without["tensor_parallel_collectives"] == LAYERS * 4 * 3
    assert report["tensor_parallel_collectives"] == without["tensor_parallel_collectives"]
    rows, ffn = 2 * 16, 64 // ranks
    assert without["saved_bytes"] - report["saved_bytes"] == LAYERS * 2 * rows * ffn * 4


def test_distributed_saved_activations(text, plain, tmp_path):
    ranks, without = plain
    config = tmp_path / "distribute.yaml"
    base = "recompute_granularity: selective\nrecompute_modules: [mlp]\n"

    def run(yaml):
        config.write_text(base + yaml)
        return run_trainer(text, *EXACT, "--heads", "4", "--tensor-parallel", str(ranks), processes=ranks,
                           config=config)

    whole, parts = run(""), run("distribute_saved_activations: true\n")
    assert parts["losses"] == without["losses"]
    hidden = 2 * 16 * 16 * 4  # bytes of the MLP's input
    shape = 3 * 8
    assert whole["saved_bytes"] - parts["saved_bytes"] == LAYERS * (hidden - hidden // ranks - shape)
    # One gather for each layer and step.
    assert parts["tensor_parallel_collectives"] == whole["tensor_parallel_collectives"] + LAYERS * 3
    # Level `activation` keeps what is each rank's own: nothing to gather.
    activation = run("distribute_saved_activations: true\nmlp_recompute_level: activation\n")
    assert activation["losses"] == without["losses"]
    assert activation["tensor_parallel_collectives"] == whole["tensor_parallel_collectives"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_data_parallel_equals_one_rank_with_the_whole_batch(text, ranks):
    whole = run_trainer(text, *EXACT, "--batch", str(2 * ranks), plugin=False)
    spread = run_trainer(text, *EXACT, processes=ranks, environment=ALL)
    assert spread["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert spread["losses"] == run_trainer(text, *EXACT, plugin=False, processes=ranks)["losses"]


def test_data_and_tensor_parallel_together(text):
    whole = run_trainer(text, *EXACT, "--batch", "4", plugin=False)
    spread = run_trainer(text, *EXACT, "--tensor-parallel", "2", processes=4, environment=ALL)
    assert spread["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert spread["stderr"].count("Layer 1: recompute_mlp=True") == 1  # rank 0 only


def test_dropout_is_recomputed_on_every_rank(text):
    flags = ("--dropout", "0.2", "--tensor-parallel", "2")
    assert (run_trainer(text, *flags, processes=2, environment=ALL)["losses"]
            == run_trainer(text, *flags, processes=2, plugin=False)["losses"])


@pytest.mark.parametrize("flags, ranks", [((), 2), (("--tensor-parallel", "2"), 4)], ids=["stages", "and tensors"])
def test_pipeline_losses_are_those_of_one_rank(text, flags, ranks):
    """Two stages, four microbatches, 1F1B."""
    wide = (*EXACT, "--batch", "4", "--microbatches", "4")
    one = run_trainer(text, *wide, plugin=False)
    stages = (*wide, "--pipeline-parallel", "2", *flags)
    plain = run_trainer(text, *stages, plugin=False, processes=ranks)
    assert plain["losses"] == pytest.approx(one["losses"], rel=1e-5)
    report = run_trainer(text, *stages, processes=ranks, environment=ALL)
    assert report["losses"] == plain["losses"]
    assert report["saved_bytes"] < plain["saved_bytes"]


def test_microbatches_are_the_batch_in_parts(text, alone):
    parts = run_trainer(text, *EXACT, "--microbatches", "2", plugin=False)
    assert parts["losses"] == pytest.approx(alone["losses"], rel=1e-5)
