"""A job of two ranks over Gloo (megatron/job.py) with recoup and without: losses, layers, exact bytes.

$RECOUP_MEGATRON/VERSION, where $RECOUP_JOB_VERSION names one, is a checkout: then Megatron's own parser, its
checks and core_transformer_config_from_args take the options. A wheel has none of them.
"""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import megatron_versions as megatron

JOB = os.path.join(megatron.HERE, "job.py")
RNG = 3 * 5056  # what Megatron's checkpoint keeps: the CPU's, the GPU's and the tracker's generator
LAYOUTS = {"tp": "--tensor-model-parallel-size", "pp": "--pipeline-model-parallel-size"}
N = 3
SELECTIVE = ["--recompute-granularity", "selective", "--recompute-modules", "mlp",
             "--recompute-mlp-num-layers", str(N)]


@pytest.fixture(scope="module")
def tree():
    return megatron.source(os.environ.get("RECOUP_JOB_VERSION", megatron.VERSIONS[-1]))


@pytest.fixture(scope="module")
def job():
    def start(tree, layout, *arguments, launcher=(), model="gpt"):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_") or k == "RECOUP_BUILD"}
        clean["JOB_MODEL"] = model
        path = [tree, megatron.PACKAGE, os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *launcher, JOB,
             LAYOUTS[layout], "2", *arguments], capture_output=True, text=True, timeout=300,
            env={**clean, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                 "PYTHONPATH": os.pathsep.join(filter(None, path))})
        assert done.returncode == 0, done.stderr[-4000:]
        ranks = [json.loads(text) for text in re.findall(r"\{\"stage\".*?\"rank\": \d+\}", done.stdout)]
        assert len(ranks) == 2
        return sorted(ranks, key=lambda rank: rank["rank"]), done.stdout + done.stderr
    return start


@pytest.fixture(scope="module")
def plain(job, tree):
    return {layout: job(tree, layout)[0] for layout in LAYOUTS}


def check(ranks, plain, layout, every=1):
    """Losses of a job without recoup, the first N MLPs, and to the byte what they no longer keep. every: how many
    layers there are to an MLP."""
    ffn = 64 // (2 if layout == "tp" else 1)
    saved = 2 * 16 * 2 * ffn * 4 - RNG  # fc1's output and the activation's, sequence x batch x ffn floats
    for rank, without in zip(ranks, plain):
        assert rank["losses"] == without["losses"]
        assert rank["mlp"] == {number: int(number) <= N * every for number in without["mlp"]}
        if layout == "pp":
            assert without["left"] - rank["left"] == saved * sum(rank["mlp"].values())
    assert any(rank["losses"] for rank in ranks)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_launcher(layout, job, tree, plain):
    ranks, log = job(tree, layout, *SELECTIVE, launcher=["-m", "recoup.megatron"])
    check(ranks, plain[layout], layout)
    for number in range(1, 5):  # each stage says its layers, once
        assert log.count(f"Layer {number}: recompute_mlp={number <= N}") == 1


def test_the_patch(job, tree, plain, tmp_path):
    shutil.copytree(os.path.join(tree, "megatron"), tmp_path / "megatron",
                    ignore=shutil.ignore_patterns("__pycache__"))
    megatron.patcher("apply", str(tmp_path))
    check(job(str(tmp_path), "pp", *SELECTIVE)[0], plain["pp"], "pp")


def test_a_hybrid_model_by_the_launcher(job, tree):
    """Of *-*-*-*-, the first MLPs and not the first layers."""
    plain = job(tree, "pp", model="hybrid")[0]
    assert sorted(number for rank in plain for number in rank["mlp"]) == list("2468")
    ranks, log = job(tree, "pp", *SELECTIVE, "--recompute-layer-scope", "mlp", launcher=["-m", "recoup.megatron"],
                     model="hybrid")
    check(ranks, plain, "pp", every=2)
    assert [log.count(f"Layer {n}: recompute_mlp=") for n in range(1, 9)] == [0, 1] * 4
