"""The InfiniTrain patch on a framework of our own writing (infinitrain/framework) that has the sites it looks
for: applied, compiled with everything it ships, and run. The real one is run by hand; see
patches/infinitrain/README.md for what was run on which upstream commit."""
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import BUILD, ROOT

PATCH = os.path.join(ROOT, "patches", "infinitrain", "patch_infinitrain.py")
HERE = os.path.join(ROOT, "tests", "patches", "infinitrain")
POLICY = os.path.join(BUILD, "librecoup_policy.so")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
MLP = ("--recompute_granularity=selective", "--recompute_modules=mlp")
TRANSFORMER = "infini_train/src/nn/modules/transformer/transformer.cc"
ATTENTION = "infini_train/src/nn/modules/transformer/causal_self_attention.cc"
FUNCTION = "infini_train/src/autograd/function.cc"

# The framework's files, for the tests of the patcher.
TREE = {}
for folder, _, names in os.walk(os.path.join(HERE, "framework", "infini_train")):
    for name in names:
        with open(os.path.join(folder, name)) as file:
            TREE[os.path.relpath(os.path.join(folder, name), os.path.join(HERE, "framework"))] = file.read()

# What upstream's branch of activation checkpointing (PR 154) changes in these files: {file: [(old, new)]}.
WITH_CHECKPOINT = {
    FUNCTION: [("    if (GradMode::IsEnabled()) {\n        Tensors needs",
                "    if (GradMode::IsEnabled() || GradMode::PropagateRequiresGrad()) {\n        Tensors needs"),
               ("    if (!GradMode::IsEnabled()) {\n        return", '''
    if (!GradMode::IsEnabled()) {
        if (GradMode::PropagateRequiresGrad()) {
            bool output_requires_grad = false;
            for (const auto &t : input_tensors) { output_requires_grad |= t->requires_grad(); }
            out->set_requires_grad(output_requires_grad);
        }
        return'''.lstrip("\n"))],
    TRANSFORMER: [
        ("} // namespace\n\nTransformerLayer::", '''
Module::Tensors RunTransformerLayers(const std::shared_ptr<ModuleList> &layers, size_t start, size_t end,
                                     const Module::Tensors &inputs) {
    auto hidden = inputs[0];
    auto layer_inputs = inputs;
    for (size_t layer_idx = start; layer_idx < end; ++layer_idx) {
        layer_inputs[0] = hidden;
        hidden = (*(*layers)[layer_idx])(layer_inputs)[0];
    }
    return {hidden};
}
[[maybe_unused]] bool ShouldUseLayerRecompute() {
    LOG(FATAL) << "Selective activation recompute is not implemented yet. Use full layer recompute.";
    return false;
}
} // namespace

TransformerLayer::'''.lstrip("\n")),
        ('''
        for (auto &h : *std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName])) {
            x1 = (*h)({x1, freqs_view, start_pos_ptr, mask})[0];
        }''', '''
        return RunTransformerLayers(std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName]), 0, 2,
                                    {x1, freqs_view, start_pos_ptr, mask});'''),
        ('''
        for (auto &h : *std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName])) { x1 = (*h)({x1})[0]; }''',
         '''
        return RunTransformerLayers(std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName]), 0, 2, {x1});'''),
    ],
}


def make_tree(folder, with_checkpoint=False):
    shutil.copytree(os.path.join(HERE, "framework"), folder, dirs_exist_ok=True)
    if with_checkpoint:
        shutil.copytree(os.path.join(HERE, "with_checkpoint"), folder, dirs_exist_ok=True)
        for path, changes in WITH_CHECKPOINT.items():
            text = (folder / path).read_text()
            for old, new in changes:
                assert text.count(old) == 1, old
                text = text.replace(old, new)
            (folder / path).write_text(text)
    return folder


def patch(*arguments):
    return subprocess.run([sys.executable, PATCH, *map(str, arguments)], capture_output=True, text=True)


def contents(folder):
    return {os.path.relpath(os.path.join(where, f), folder): open(os.path.join(where, f)).read()
            for where, _, files in os.walk(folder) for f in files}


def sources(tree):
    return sorted(os.path.relpath(os.path.join(where, f), tree)
                  for where, _, files in os.walk(tree) for f in files if f.endswith(".cc"))


def compiled(tree):
    """Everything in the tree, as one unit for speed; a source of ours that does not compile fails here."""
    built = subprocess.run(["g++", "-std=c++20", "-g", "-Wall", "-fsanitize=address", "-I", tree, "-x", "c++", "-",
                            "-ldl", "-o", tree / "program"], capture_output=True, text=True,
                           input="".join(f'#include "{source}"\n' for source in sources(tree)))
    assert built.returncode == 0, built.stderr
    return tree / "program"


class Run:
    def __init__(self, program, *arguments, **environment):
        done = subprocess.run([program, *arguments], capture_output=True, text=True,
                              env={**CLEAN, "RECOUP_PLUGIN": POLICY, "ASAN_OPTIONS": "detect_leaks=0", **environment})
        self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        pairs = dict(line.split() for line in done.stdout.splitlines())
        self.hash, self.alive = pairs.pop("hash", None), int(pairs.pop("alive", -1))
        self.kernels = {name: int(count) for name, count in pairs.items()}
        self.log = re.findall(r"INFO (Layer \d+: recompute_mlp=\w+)", done.stderr)

    def more(self, other):
        """How many kernels ran that did not in the other run."""
        return {name: count - other.kernels[name] for name, count in self.kernels.items()
                if count != other.kernels[name]}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """{version: (unpatched program, patched program)}; the versions compute the same."""
    unpatched = compiled(make_tree(tmp_path_factory.mktemp("unpatched")))
    result = {}
    for version in ("master", "with_checkpoint"):
        tree = make_tree(tmp_path_factory.mktemp(version), version == "with_checkpoint")
        applied = patch("apply", tree)
        assert applied.returncode == 0, applied.stderr
        result[version] = unpatched, compiled(tree)
        # Each of our sources by itself: what it needs it includes.
        for source in ("nn/modules/transformer/recoup_layer.cc", "autograd/recompute.cc"):
            if (tree / "infini_train/src" / source).exists():
                subprocess.run(["g++", "-std=c++20", "-Wall", "-Werror", "-fsyntax-only", "-I", tree,
                                tree / "infini_train/src" / source], check=True)
    return result


@pytest.fixture(params=["master", "with_checkpoint"])
def both(request, programs):
    """The two programs of a version, and the flag that turns selective recompute on there."""
    return (*programs[request.param], () if request.param == "master" else ("--activation_recompute=true",))


MODELS = [(), ("rope",), ("swiglu",), ("rope", "swiglu", "moe")]


@pytest.mark.parametrize("model", MODELS, ids=" ".join)
def test_mlps_recompute_and_train_the_same(both, model):
    unpatched, patched, on = both
    before = Run(unpatched, *model)
    assert before.code == 0 and (before.hash, before.kernels) == (
        (none := Run(patched, *model)).hash, none.kernels)
    fc1 = 2 if "swiglu" in model else 1
    alive = [before.alive]
    for n in (1, 2):
        run = Run(patched, *model, *on, *MLP, f"--recompute_mlp_num_layers={n}")
        assert (run.code, run.hash) == (0, before.hash), run.stderr
        assert run.more(before)["fc1"] == fc1 * n
        # recoup's own engine ends before fc2; upstream's runs it again.
        assert run.more(before).get("fc2", 0) == (n if on else 0)
        alive.append(run.alive)
    assert alive[0] > alive[1] > alive[2]
    everywhere = Run(patched, *model, *on, *MLP)
    assert everywhere.hash == before.hash
    assert everywhere.more(before)["fc1"] == fc1 * (2 if "moe" in model else 4)
    assert "experts" not in everywhere.more(before)


def test_experts_are_no_mlp_and_the_log_says_so(both):
    _, patched, on = both
    assert Run(patched, "moe", *on, *MLP).log == [f"Layer {n}: recompute_mlp={n <= 2}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("model", MODELS, ids=" ".join)
def test_more_than_the_mlp(both, model, tmp_path):
    unpatched, patched, on = both
    before = Run(unpatched, *model)
    core = Run(patched, *model, *on, "--recompute_granularity=selective", "--recompute_modules=core_attn")
    assert core.hash == before.hash and core.alive < before.alive
    assert {"Softmax": 4}.items() <= core.more(before).items()
    assert not {"attention", "fc1", "experts"} & core.more(before).keys()
    level = Run(patched, *model, *on, *MLP, "--mlp_recompute_level=activation")
    assert level.hash == before.hash and level.alive < before.alive
    assert level.more(before).keys() <= {"Activation", "Mul", *(["fc2"] if on else [])}
    assert level.more(before)["Activation"] == (2 if "moe" in model else 4)
    for yaml, layers in {"recompute_method: block\nrecompute_num_layers: 1\n": 2,  # of each stage of two
                         "recompute_method: uniform\nrecompute_num_layers: 1\n": 4,
                         "recompute_method: uniform\nrecompute_num_layers: 2\n": 4}.items():
        (tmp_path / "full.yaml").write_text("recompute_granularity: full\n" + yaml)
        full = Run(patched, *model, f"--recoup_config={tmp_path / 'full.yaml'}")
        assert (full.code, full.hash) == (0, before.hash), full.stderr
        assert full.more(before)["Softmax"] == layers and full.alive < before.alive


def test_full_by_flags_on_master(programs):
    unpatched, patched = programs["master"]
    full = Run(patched, "--recompute_granularity=full", "--recompute_method=block", "--recompute_num_layers=1")
    assert full.more(Run(unpatched))["Softmax"] == 2 and full.hash == Run(unpatched).hash


def test_every_stage_logs_its_layers_once(programs):
    patched = programs["master"][1]
    assert Run(patched, *MLP, "rank=2").log == [f"Layer {n}: recompute_mlp=True" for n in (1, 2, 3, 4)]
    assert Run(patched, *MLP, "rank=3").log == ["Layer 1: recompute_mlp=True", "Layer 2: recompute_mlp=True"]


def test_options_from_a_file_or_the_environment(both, tmp_path):
    unpatched, patched, _ = both
    (tmp_path / "one.yaml").write_text(
        "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 1\n")
    for run in (Run(patched, f"--recoup_config={tmp_path / 'one.yaml'}"),
                Run(patched, RECOUP_CONFIG=str(tmp_path / "one.yaml")),
                Run(patched, RECOUP_RECOMPUTE_MLP_NUM_LAYERS="1")):
        assert run.more(Run(unpatched))["fc1"] == 1
    assert Run(patched, RECOUP_CONFIG="", RECOUP_PLUGIN="").code == 0  # nothing is configured


@pytest.mark.parametrize("arguments, wanted", [
    ((*MLP, "--recompute_mlp_num_layers=twelve"), "--recompute_mlp_num_layers=twelve: recompute_mlp_num_layers: must be"),
    ((*MLP, "--recompute_mlp_num_layers=0"), "--recompute_mlp_num_layers=0: "),
    ((*MLP, "--recompute_mlp_num_layers=-1"), "--recompute_mlp_num_layers=-1: "),
    ((*MLP, "--mlp_recompute_level=some"), "--mlp_recompute_level=some: "),
    (("--recompute_granularity=selective", "--recompute_modules=mpl"), "--recompute_modules=mpl: "),
    (("--recompute_granularity=selective", "--recompute_modules=layernorm"), "layernorm"),
    (("--recompute_modules=mlp", "--recompute_mlp_num_layers=2", "--recompute_granularity="), "recompute_granularity"),
    ((*MLP, "--recoup_plugin=/no/such.so"), "cannot load the plugin /no/such.so"),
    ((*MLP, "--recoup_config=/no/such.yaml"), "/no/such.yaml"),
])
def test_bad_options_train_nothing_and_name_the_flag(both, arguments, wanted):
    _, patched, on = both
    run = Run(patched, *on, *arguments)
    assert run.code == 134 and run.stdout == "" and wanted in run.stderr.split("FATAL", 1)[1], run.stderr


def test_a_missing_file_is_named(both):
    run = Run(both[1], "--recoup_config=/no/such.yaml")
    assert run.code == 134 and run.stdout == "" and "/no/such.yaml: cannot be read" in run.stderr


def test_more_layers_than_there_are_is_said(both):
    _, patched, on = both
    run = Run(patched, *on, *MLP, "--recompute_mlp_num_layers=99")
    assert run.code == 0 and re.search(r"WARNING --recompute_mlp_num_layers=99: .*99", run.stderr)


def test_upstreams_full_beside_recoups_options_is_refused(programs, tmp_path):
    patched = programs["with_checkpoint"][1]
    (tmp_path / "mlp.yaml").write_text("recompute_granularity: selective\nrecompute_modules: [mlp]\n")
    run = Run(patched, "--activation_recompute=true", f"--recoup_config={tmp_path / 'mlp.yaml'}")
    assert run.code == 134 and "allowed is one of the two" in run.stderr
    assert Run(patched, "--activation_recompute=true").code == 0  # upstream's alone is upstream's business


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_apply_status_revert(tmp_path, with_checkpoint):
    before = contents(make_tree(tmp_path, with_checkpoint))
    assert patch("apply", tmp_path).returncode == 0
    applied = contents(tmp_path)
    assert patch("apply", tmp_path).stdout == "nothing to do\n"
    assert patch("status", tmp_path).stdout.endswith("\napplied\n")
    assert "RecoupSetUp(layer.get(), i + 1, start_layer, end_layer - start_layer, config.n_layer);" in applied[TRANSFORMER]
    assert ("recompute::BeforeForward" in applied[FUNCTION]) != with_checkpoint
    for ours, source in {"recoup/plugin.h": "plugin/include/recoup/plugin.h",
                         "recoup/host.hpp": "plugin/include/recoup/host.hpp"}.items():
        mark, added = applied[ours].split("\n", 1)
        assert " added: " in mark and added == open(os.path.join(ROOT, source)).read()
    assert patch("revert", tmp_path).returncode == 0
    assert contents(tmp_path) == before
    assert not (tmp_path / "recoup").exists()


def test_an_attention_without_the_sites_keeps_its_own(tmp_path):
    make_tree(tmp_path)
    text = (tmp_path / ATTENTION).read_text()
    (tmp_path / ATTENTION).write_text(text.replace("auto y = att->Matmul(v);", "auto y = att->Matmul(v) ;"))
    assert patch("apply", tmp_path).returncode == 0
    program = compiled(tmp_path)
    run = Run(program, "--recompute_granularity=selective", "--recompute_modules=core_attn")
    assert run.code == 134 and "core_attn" in run.stderr
    assert Run(program, *MLP).code == 0


def test_dry_run_writes_nothing(tmp_path):
    before = contents(make_tree(tmp_path))
    out = patch("apply", tmp_path, "--dry-run").stdout
    assert contents(tmp_path) == before
    assert "+    recompute::BeforeForward(compute_inputs);" in out
    assert "+++ b/infini_train/src/autograd/recompute.cc" in out


def test_an_unknown_site_or_a_file_in_the_way_writes_nothing(tmp_path):
    make_tree(tmp_path)
    text = (tmp_path / FUNCTION).read_text()
    (tmp_path / FUNCTION).write_text(text.replace("tls_autocast", "other"))
    before = contents(tmp_path)
    failed = patch("apply", tmp_path)
    assert failed.returncode == 1 and contents(tmp_path) == before
    assert "searched for the line `for (auto &t : compute_inputs)" in failed.stderr
    (tmp_path / FUNCTION).write_text(text)
    (tmp_path / "recoup").mkdir()
    (tmp_path / "recoup" / "plugin.h").write_text("somebody else's")
    before = contents(tmp_path)
    failed = patch("apply", tmp_path)
    assert failed.returncode == 1 and contents(tmp_path) == before
    assert "there is another file of this name" in failed.stderr


def test_what_versions_before_the_marks_wrote_is_replaced_and_taken_out(tmp_path):
    before = contents(make_tree(tmp_path))
    sys.path.append(os.path.dirname(PATCH))
    import patch_infinitrain
    for file in patch_infinitrain.PATCH.files(str(tmp_path)):
        names = {edit.name for edit in file.legacy}
        shared = [edit for edit in file.edits if edit.name not in names and (
            edit.name == "#include infini_train/include/nn/modules/transformer/recoup_layer.h" or "function.cc" in file.path)]
        for edit in [*shared, *file.legacy] if file.legacy else []:
            text = (tmp_path / file.path).read_text()
            site, = edit.find(text)
            (tmp_path / file.path).write_text(text[:site.start] + edit.indented(edit.lines, site.indent) + text[site.end:])
    old = contents(tmp_path)
    assert "RecoupMlp(recoup, " in old[TRANSFORMER] and "IsRerunning" in old[FUNCTION]
    assert patch("revert", tmp_path).returncode == 0 and contents(tmp_path) == before
    for path, text in old.items():
        (tmp_path / path).write_text(text)
    applied = patch("apply", tmp_path)
    assert applied.returncode == 0, applied.stderr
    assert "RecoupMlp(recoup_layer, " in (tmp_path / TRANSFORMER).read_text()
    assert patch("revert", tmp_path).returncode == 0 and contents(tmp_path) == before


@pytest.mark.parametrize("path, needed", [
    ("infini_train/include/autograd/function.h", "SavedTensorHooks"),
    ("infini_train/include/nn/parallel/global.h", "GetCoordOf"),
    ("infini_train/include/nn/modules/module.h", "mutable_module"),
])
def test_what_our_sources_call_must_be_there(tmp_path, path, needed):
    make_tree(tmp_path)
    (tmp_path / path).write_text((tmp_path / path).read_text().replace(needed, "other"))
    before = contents(tmp_path)
    refused = patch("apply", tmp_path)
    assert refused.returncode == 1 and needed in refused.stderr and contents(tmp_path) == before


def test_recompute_of_saved_tensors(tmp_path):
    """The adapter alone, on its own driver: errors, nesting, and where a recompute ends."""
    make_tree(tmp_path)
    assert patch("apply", tmp_path).returncode == 0
    shutil.copy(os.path.join(HERE, "recompute_checks.cc"), tmp_path / "main.cc")
    ran = subprocess.run([compiled(tmp_path)], capture_output=True, text=True,
                         env={**CLEAN, "ASAN_OPTIONS": "detect_leaks=0"})
    assert ran.returncode == 0 and ran.stdout.endswith("all right\n"), ran.stdout + ran.stderr
    assert "recoup: layer 2 mlp: saved tensor 0: the forward saved float32[1], the recompute float32[2]" in ran.stdout
