"""llm.c: the patch on a trainer of our own writing that has its sites. Upstream's own train_gpt2.c is run,
and train_gpt2.cu compiled, by hand; see patches/llmc/README.md."""
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import BUILD, ROOT

PATCH = os.path.join(ROOT, "patches", "llmc", "patch_llmc.py")
STANDIN = os.path.join(ROOT, "tests", "patches", "llmc", "standin.c")
POLICY = os.path.join(BUILD, "librecoup_policy.so")
CLEAN = {**{k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")},
         "ASAN_OPTIONS": "detect_leaks=0"}  # as llm.c, it leaves its memory to the system
MLP = "recompute_granularity: selective\nrecompute_modules: [mlp]\n"
LAYERS, BUFFER = 6, 2 * 5 * 4 * 12 * 4  # of the stand-in; the bytes of one [B, T, 4C] buffer

# Lines of the CUDA trainer that the edits look for, each where upstream has its own.
CUDA = '''#include "llmc/dataloader.h"
void fill_in_activation_sizes() {
    tensors[10] = TENSOR_SPEC(data->fch, L * B * T * 4*C);
    tensors[11] = TENSOR_SPEC(data->fch_gelu, (recompute < 1) ? L * B * T * 4*C : B * T * 4*C);
}
void gpt2_allocate_state() {
    fill_in_activation_sizes(&model->acts, model->acts_specs, B, T, model->config, model->recompute);
}
void gpt2_forward() {
        floatX* l_fch = acts.fch + l * B * T * 4*C;
        floatX* l_fch_gelu = (model->recompute < 1) ? acts.fch_gelu + l * B * T * 4*C : acts.fch_gelu;
}
void gpt2_backward_and_reduce() {
        floatX* l_fch_pre_gelu = acts.fch + l * B * T * 4*C;
        floatX* l_fch_gelu = (model->recompute < 1) ? acts.fch_gelu + l * B * T * 4*C : acts.fch_gelu;
        // start the backward pass for this layer
        if(model->recompute >= 1) {
            gelu_forward();
        }
        matmul_backward(dl_bt4c, dl_fcprojw, dl_fcprojb);
        if(model->recompute >= 2) {
            layernorm_forward(l_ln2);
        }
        if(model->recompute >= 2) {
            layernorm_forward(l_ln1);
        }
}
void error_usage() {
    // multi-node settings
}
int main() {
    // multi-node settings
        else if (argv[i][1] == 'r') { recompute = atoi(argv[i+1]); }
}
'''


def make_tree(folder):
    shutil.copy(STANDIN, folder / "train_gpt2.c")
    (folder / "train_gpt2.cu").write_text(CUDA)
    (folder / "llmc").mkdir()
    (folder / "llmc" / "dataloader.h").write_text("#define DATALOADER\n")
    return folder


def patch(*arguments):
    return subprocess.run([sys.executable, PATCH, *map(str, arguments)], capture_output=True, text=True)


def compiled(tree):
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-fsanitize=address,undefined", tree / "train_gpt2.c", "-o",
                    tree / "train_gpt2", "-lm", "-ldl"], check=True)
    return tree / "train_gpt2"


@pytest.fixture(scope="module")
def unpatched(tmp_path_factory):
    ran = subprocess.run([compiled(make_tree(tmp_path_factory.mktemp("unpatched")))], capture_output=True, text=True,
                         env=CLEAN)
    assert ran.stdout.count("loss") == 4
    return ran.stdout.splitlines()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    tree = make_tree(tmp_path_factory.mktemp("patched"))
    applied = patch("apply", tree)
    assert applied.returncode == 0, applied.stderr
    return compiled(tree)


def run(trainer, *flags, **environment):
    return subprocess.run([trainer, *map(str, flags)], capture_output=True, text=True,
                          env={**CLEAN, "RECOUP_PLUGIN": POLICY, **environment})


def train(trainer, *flags, **environment):
    """(bytes of the activations, losses and hashes, what recoup said)"""
    ran = run(trainer, *flags, **environment)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    steps = [line for line in lines if line.startswith("step")]
    size = next(int(line.split()[1]) for line in lines if line.startswith("activations"))
    return size, steps, [line for line in lines if "recoup" in line] + ran.stderr.splitlines()


def test_every_choice_trains_the_same_in_as_many_bytes_as_computed(trainer, unpatched, tmp_path):
    size, steps = int(unpatched[0].split()[1]), unpatched[1:]
    assert train(trainer)[:2] == (size, steps)
    assert train(trainer, RECOUP_RECOMPUTE_MLP_NUM_LAYERS="0")[:2] == (size, steps)
    for n in range(1, LAYERS + 1):
        assert train(trainer, "-rc", n)[:2] == (size - 2 * (n - 1) * BUFFER, steps), n
    (tmp_path / "all.yaml").write_text(MLP)
    assert train(trainer, "-ry", tmp_path / "all.yaml")[:2] == (size - 2 * (LAYERS - 1) * BUFFER, steps)
    (tmp_path / "second.yaml").write_text(MLP + 'recompute_mlp_layers: "2-6:2"\n')
    assert train(trainer, RECOUP_CONFIG=str(tmp_path / "second.yaml"))[:2] == (size - 4 * BUFFER, steps)


def test_the_activation_level_keeps_fc1s_output(trainer, unpatched, tmp_path):
    (tmp_path / "act.yaml").write_text(MLP + "mlp_recompute_level: activation\nrecompute_mlp_num_layers: 4\n")
    size, steps, said = train(trainer, "-ry", tmp_path / "act.yaml")
    assert (size, steps) == (int(unpatched[0].split()[1]) - 3 * BUFFER, unpatched[1:])
    assert "recoup: fc1's output is kept in 6 buffers and the GELU in 3, for 6 layers" in said


def test_the_log(trainer):
    said = train(trainer, "-rc", 1)[2]
    assert re.findall(r"Layer (\d): recompute_mlp=(\w+)", "\n".join(said)) == [
        (str(n), str(n == 1)) for n in range(1, LAYERS + 1)]
    assert any("one layer alone saves nothing" in line for line in said)
    assert not any("saves nothing" in line for line in train(trainer, "-rc", 2)[2])
    assert any("WARNING" in line and "9" in line for line in train(trainer, "-rc", 9)[2])
    assert train(trainer)[2] == []


@pytest.mark.parametrize("flags, wanted", [
    (("-rc", "twelve"), "error: -rc twelve: must be a number of layers >= 1"),
    (("-rc", "0"), "error: -rc 0: options:3:1: recompute_mlp_num_layers: must be >= 1"),
    (("-rc", "-1"), "error: -rc -1: must be a number of layers >= 1"),
    (("-rc", ""), "error: -rc '': needs a value"),
    (("-rc",), "-rc is no flag with a value; allowed are"),
    (("-x", "3"), "-x is no flag with a value; allowed are"),
    (("-rc", "2", "-rp", "/no/such.so"), "cannot load the plugin /no/such.so"),
    (("-ry", "/no/such.yaml"), "error: -ry /no/such.yaml: "),
    (("-rc", "2", "-ry", "/no/such.yaml"), "allowed is one of the two"),
])
def test_bad_flags_train_nothing(trainer, flags, wanted):
    ran = run(trainer, *flags)
    assert ran.returncode == 1 and "step" not in ran.stdout
    assert wanted in ran.stderr and "LibTorch's" not in ran.stderr


@pytest.mark.parametrize("yaml, wanted", [
    ("recompute_granularity: selective\nrecompute_modules: [core_attn]\n", "core_attn"),
    (MLP + "recompute_mlp_num_layers: -3\n", "recompute_mlp_num_layers"),
    ("- 1\n", "bad.yaml"),
])
def test_bad_files_train_nothing(trainer, tmp_path, yaml, wanted):
    (tmp_path / "bad.yaml").write_text(yaml)
    ran = run(trainer, RECOUP_CONFIG=str(tmp_path / "bad.yaml"))
    assert ran.returncode == 1 and "step" not in ran.stdout and wanted in ran.stderr


# What the host cannot honour; `recoup check --host` says the same beforehand.
DENIED = {
    "core_attn": "recompute_granularity: selective\nrecompute_modules: [core_attn]\n",
    "moe": "recompute_granularity: selective\nrecompute_modules: [mlp, moe]\n",
    "full": "recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 1\n",
    "distributed": "recompute_granularity: full\nrecompute_method: uniform\nrecompute_num_layers: 1\n"
                   "distribute_saved_activations: true\n",
    "budget": MLP + "recompute_memory_budget: 1GiB\n",
}


@pytest.mark.parametrize("yaml", DENIED.values(), ids=DENIED)
def test_options_that_the_host_cannot_honour_train_nothing(trainer, recoup, tmp_path, yaml):
    (tmp_path / "bad.yaml").write_text(yaml)
    ran = run(trainer, RECOUP_CONFIG=str(tmp_path / "bad.yaml"))
    assert ran.returncode == 1 and "step" not in ran.stdout
    said = recoup("check", "--host", "llmc", "--layers", 4, tmp_path / "bad.yaml")
    assert said.returncode == 1 and said.stderr.splitlines()[-1][len("recoup: "):] in ran.stderr


def contents(folder):
    return {os.path.relpath(os.path.join(where, f), folder): open(os.path.join(where, f)).read()
            for where, _, files in os.walk(folder) for f in files}


def test_apply_status_revert(tmp_path):
    before = contents(make_tree(tmp_path))
    assert "not applied" in patch("status", tmp_path).stdout
    assert patch("apply", tmp_path).returncode == 0
    assert patch("apply", tmp_path).stdout == "nothing to do\n"
    assert patch("status", tmp_path).stdout.endswith("\napplied\n")
    cuda = (tmp_path / "train_gpt2.cu").read_text()
    assert cuda.count("recoup_fc1_again(l)") == 3
    assert not [line for line in cuda.splitlines() if " l * B * T * 4*C" in line and "recoup was" not in line]
    # With -r 2 fc1's input is computed before fc1.
    backward = cuda[cuda.index("void gpt2_backward"):]
    assert backward.index("layernorm_forward(l_ln2") < backward.index("matmul_forward_cublaslt(l_fch_gelu")
    assert patch("revert", tmp_path).returncode == 0
    assert contents(tmp_path) == before


def test_one_of_the_two_trainers_is_enough_and_none_is_refused(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "train_gpt2.cu").unlink()
    assert patch("apply", tmp_path).returncode == 0 and "recoup_start" in (tmp_path / "train_gpt2.c").read_text()
    assert patch("revert", tmp_path).returncode == 0
    (tmp_path / "train_gpt2.c").unlink()
    refused = patch("apply", tmp_path)
    assert refused.returncode == 1 and "give the folder of llm.c" in refused.stderr
    assert not (tmp_path / "recoup").exists()
