"""ggml: the rewriter and the trainer of examples/ggml_mlp against the ggml library that `pip install
ggml-python` brings, and the patch on a tree of our own writing. ggml_opt_build() itself, patched, is run by
hand; see patches/ggml/README.md."""
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from conftest import BUILD, ROOT

HERE = os.path.join(ROOT, "patches", "ggml")
PATCH = os.path.join(HERE, "patch_ggml.py")
POLICY = os.path.join(BUILD, "librecoup_policy.so")
OURS = ["-I", HERE, "-I", os.path.join(ROOT, "plugin", "include"), "-I", os.path.join(ROOT, "hooks", "include")]
SOURCES = [os.path.join(HERE, "recoup_ggml.cpp"), os.path.join(HERE, "recoup_ggml_rewrite.cpp")]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
MLP = "recompute_granularity: selective\nrecompute_modules: [mlp]\n"


@pytest.fixture(scope="session")
def ggml():
    """Compiler and linker flags of the installed ggml."""
    found = importlib.util.find_spec("ggml")
    assert found, "ggml-python is not installed: pip install -r examples/requirements.txt"
    site = os.path.dirname(os.path.dirname(found.origin))
    return ["-I", os.path.join(site, "include"), "-L", os.path.join(site, "lib"),
            f"-Wl,-rpath,{os.path.join(site, 'lib')}", "-lggml", "-lggml-cpu", "-lggml-base", "-ldl"]


def build(program, sources, flags, *more):
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *more, *map(str, sources), *OURS, *flags,
                    "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="session")
def trainer(ggml, tmp_path_factory):
    return build(tmp_path_factory.mktemp("ggml") / "ggml_mlp",
                 [os.path.join(ROOT, "examples", "ggml_mlp", "main.cpp"), *SOURCES], ggml, "-O1")


def run(trainer, *flags, **environment):
    return subprocess.run([trainer, "-p", POLICY, *map(str, flags)], capture_output=True, text=True,
                          env={**CLEAN, **environment})


def train(trainer, *flags, **environment):
    """(lines of losses and weight hashes, bytes of the compute buffer, operations run again, splits)"""
    ran = run(trainer, *flags, **environment)
    assert ran.returncode == 0, ran.stderr
    first, *steps = ran.stdout.splitlines()
    again, splits, size = map(int, re.findall(r"\d+", first))
    return steps, size, again, splits


def test_the_rewriter(ggml, tmp_path):
    checks = build(tmp_path / "checks", [os.path.join(ROOT, "tests", "patches", "ggml", "rewrite_checks.cc"), *SOURCES],
                   ggml, "-g", "-fsanitize=address,undefined")
    ran = subprocess.run([checks, POLICY], capture_output=True, text=True, env=CLEAN)
    assert ran.stdout == "all right\n" and ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("flags, tensors", [((), 2), (("-g",), 3), (("-b", 2), 2), (("-b", 2, "-g"), 3)],
                         ids=["plain", "gated", "two backends", "two backends, gated"])
def test_losses_and_weights_are_the_same_for_every_choice_and_the_buffer_is_smaller(trainer, tmp_path, flags, tensors):
    steps, none, again, splits = train(trainer, *flags)
    assert len(steps) == 4 and again == 0 and (splits > 1) == ("-b" in flags)
    layer = tensors * 256 * 256 * 4  # [T, F] floats
    assert train(trainer, *flags, RECOUP_RECOMPUTE_MLP_NUM_LAYERS="0")[:2] == (steps, none)
    for n in (1, 4):
        assert train(trainer, *flags, "-n", n)[:3] == (steps, none - n * layer, n * tensors)
    # With all layers another moment is the peak: at least half of the layers' tensors are gone by then.
    (tmp_path / "all.yaml").write_text(MLP)
    everywhere = train(trainer, *flags, "-y", tmp_path / "all.yaml")
    assert everywhere[0] == steps and everywhere[2] == 8 * tensors and none - everywhere[1] > 4 * layer
    (tmp_path / "some.yaml").write_text(MLP + 'recompute_mlp_layers: "1-8:2"\n')
    assert train(trainer, *flags, RECOUP_CONFIG=str(tmp_path / "some.yaml"))[0] == steps


def test_sizes_that_are_no_powers_of_two(trainer):
    flags = ("-l", 5, "-t", 37, "-c", 20, "-f", 112, "-s", 2, "-g")
    steps, none, *_ = train(trainer, *flags)
    assert train(trainer, *flags, "-n", 2)[0] == steps
    assert train(trainer, *flags, "-n", 5)[0] == steps


def test_the_log_names_each_layer(trainer):
    assert re.findall(r"Layer (\d): recompute_mlp=(\w+)", run(trainer, "-n", 2, "-l", 3).stderr) == [
        ("1", "True"), ("2", "True"), ("3", "False")]
    ran = run(trainer, "-n", 9, "-l", 3)
    assert ran.returncode == 0 and "WARNING" in ran.stderr


@pytest.mark.parametrize("flags, wanted", [
    (("-n", "twelve"), "recompute_mlp_num_layers"),
    (("-n", "0"), "recompute_mlp_num_layers"),
    (("-n", "-1"), "recompute_mlp_num_layers"),
    (("-n", "2", "-p", "/no/such.so"), "cannot load the plugin /no/such.so"),
    (("-y", "/no/such.yaml"), "/no/such.yaml: cannot be read"),
    (("-n", "2", "-y", "/no/such.yaml"), "/no/such.yaml"),
])
def test_bad_options_train_nothing(trainer, flags, wanted):
    ran = run(trainer, *flags)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert wanted in ran.stderr and ran.stderr.startswith("error: ") and "LibTorch's" not in ran.stderr


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
    ran = run(trainer, "-y", tmp_path / "bad.yaml")
    assert (ran.returncode, ran.stdout) == (1, "")
    said = recoup("check", "--host", "ggml", "--layers", 4, tmp_path / "bad.yaml")
    assert said.returncode == 1 and said.stderr.splitlines()[-1][len("recoup: "):] in ran.stderr


# Lines that stand where upstream has its own; only what the edits look for.
TREE = {
    "include/ggml.h": "enum { GGML_TENSOR_FLAG_COMPUTE };\nggml_graph_nodes();\n",
    "src/CMakeLists.txt": "add_library(ggml-base\n            ggml-opt.cpp)\n\n"
                          "set_target_properties(ggml-base PROPERTIES\n    VERSION 1\n)\n",
    "src/ggml-opt.cpp": '#include "ggml-opt.h"\n#include "ggml.h"\nvoid ggml_opt_build() {\n'
                        "    ggml_build_backward_expand(opt_ctx->ctx_compute, opt_ctx->gb_grad, "
                        "opt_ctx->grad_accs.data());\n}\n",
}


@pytest.fixture(params=["", "ggml"], ids=["ggml", "llama.cpp"])
def tree(request, tmp_path):
    for path, text in TREE.items():
        file = tmp_path / request.param / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path, tmp_path / request.param


def patch(*arguments):
    return subprocess.run([sys.executable, PATCH, *map(str, arguments)], capture_output=True, text=True)


def contents(folder):
    return {os.path.relpath(os.path.join(where, f), folder): open(os.path.join(where, f)).read()
            for where, _, files in os.walk(folder) for f in files}


def test_apply_compile_revert(tree, ggml):
    root, inside = tree
    assert patch("apply", root).returncode == 0
    assert patch("status", root).stdout.endswith("\napplied\n")
    assert "\n    recoup_ggml_recompute(opt_ctx->ctx_compute, opt_ctx->gb_grad, opt_ctx->gf->n_nodes);\n" in (
        inside / "src/ggml-opt.cpp").read_text()
    # The added files compile from where they are, with nothing else of ours.
    for source in ("recoup_ggml.cpp", "recoup_ggml_rewrite.cpp"):
        subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", ggml[1],
                        "-I", inside / "src/recoup", inside / "src/recoup" / source], check=True)
    assert patch("revert", root).returncode == 0
    assert contents(inside) == TREE


def test_a_ggml_that_is_too_old_or_none_is_refused(tree, tmp_path_factory):
    root, inside = tree
    (inside / "include/ggml.h").write_text("")
    before = contents(root)
    refused = patch("apply", root)
    assert refused.returncode == 1 and "has no GGML_TENSOR_FLAG_COMPUTE" in refused.stderr
    assert contents(root) == before
    refused = patch("apply", tmp_path_factory.mktemp("empty"))
    assert refused.returncode == 1 and "give the folder of ggml" in refused.stderr
