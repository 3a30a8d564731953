"""The InfiniTrain patch, on a tree of our own writing with the sites that it looks for. The real run is
by hand; see the README for what was run on which upstream commit."""
import os
import subprocess
import sys

import pytest

from conftest import BUILD, ROOT

PATCH = os.path.join(ROOT, "patches", "infinitrain", "patch_infinitrain.py")

# Lines that stand where upstream has its own; only what the edits look for.
TREE = {
    "infini_train/include/nn/modules/transformer/transformer.h": '''#pragma once
#include "infini_train/include/nn/parallel/pp/pipeline_parallel.h"
class TransformerLayer {
public:
    explicit TransformerLayer(const TransformerConfig &config);
};
''',
    "infini_train/src/nn/modules/transformer/transformer.cc": '''#include "infini_train/include/nn/modules/transformer/mlp.h"
TransformerLayer::TransformerLayer(const nn::TransformerConfig &config) : CloneableModule(kType) {
}
void Forward() {
    auto x2 = x1 + (*modules_[kMlpLayerName])((*modules_[kLn2LayerName])({x1}))[0];
}
void Chunk() {
    for (;;) {
        auto layer = std::make_shared<TransformerLayer>(config);
    }
}
''',
    "infini_train/src/autograd/function.cc": '''#include "infini_train/include/autograd/grad_mode.h"
void Apply() {
    for (auto &t : compute_inputs) { tls_autocast_context.Autocast(type_, t); }
    bool output_requires_grad = false;
}
''',
}


@pytest.fixture
def tree(tmp_path):
    for path, text in TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def patch(*arguments):
    return subprocess.run([sys.executable, PATCH, *map(str, arguments)], capture_output=True, text=True)


def contents(tree):
    return {os.path.relpath(os.path.join(folder, f), tree): open(os.path.join(folder, f)).read()
            for folder, _, files in os.walk(tree) for f in files}


def test_apply_revert_status(tree):
    assert patch("apply", tree).returncode == 0
    applied = contents(tree)
    assert patch("apply", tree).stdout == "nothing to do\n"
    assert patch("status", tree).stdout.endswith("\napplied\n")
    assert "std::make_shared<TransformerLayer>(config, i + 1, start_layer);" in applied[
        "infini_train/src/nn/modules/transformer/transformer.cc"]
    for ours, source in {"recoup/plugin.h": "plugin/include/recoup/plugin.h",
                         "recoup/checkpoint/recompute.h": "hooks/include/recoup/checkpoint/recompute.h"}.items():
        mark, added = applied[ours].split("\n", 1)
        assert " added: " in mark and added == open(os.path.join(ROOT, source)).read()
    assert patch("revert", tree).returncode == 0
    assert contents(tree) == TREE
    assert not (tree / "recoup").exists()


def test_dry_run_writes_nothing(tree):
    out = patch("apply", tree, "--dry-run").stdout
    assert contents(tree) == TREE
    assert "+    recompute::BeforeForward(compute_inputs);" in out
    assert "+++ b/infini_train/src/autograd/recompute.cc" in out


def test_an_unknown_site_or_a_file_in_the_way_writes_nothing(tree):
    function = tree / "infini_train/src/autograd/function.cc"
    function.write_text(TREE["infini_train/src/autograd/function.cc"].replace("tls_autocast", "other"))
    before = contents(tree)
    failed = patch("apply", tree)
    assert failed.returncode == 1 and contents(tree) == before
    assert "searched for the line `for (auto &t : compute_inputs)" in failed.stderr
    function.write_text(TREE["infini_train/src/autograd/function.cc"])
    (tree / "recoup").mkdir()
    (tree / "recoup" / "plugin.h").write_text("somebody else's")
    before = contents(tree)
    failed = patch("apply", tree)
    assert failed.returncode == 1 and contents(tree) == before
    assert "there is another file of this name" in failed.stderr


# A framework as small as the adapter needs: enough to compile and run it as it is.
FRAMEWORK = {
    "infini_train/include/tensor.h": '''#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
namespace infini_train {
enum class DataType { kFLOAT32 };
inline const std::unordered_map<DataType, std::string> kDataTypeToDesc{{DataType::kFLOAT32, "float32"}};
struct Device { bool operator==(const Device &) const { return true; } };
class Tensor {
public:
    explicit Tensor(float v, bool requires_grad = false) : value(v), requires_grad_(requires_grad) {}
    const std::vector<int64_t> &Dims() const { return dims; }
    DataType Dtype() const { return DataType::kFLOAT32; }
    Device GetDevice() const { return {}; }
    std::shared_ptr<Tensor> Detach() const { return std::make_shared<Tensor>(value); }
    bool requires_grad() const { return requires_grad_; }
    void set_requires_grad(bool r) { requires_grad_ = r; }
    float value;
    std::vector<int64_t> dims{1};
private:
    bool requires_grad_;
};
}
''',
    "infini_train/include/autocast.h": '''#pragma once
namespace infini_train { struct AutocastContext { bool on = false; }; inline thread_local AutocastContext tls_autocast_context; }
''',
    "infini_train/include/autograd/grad_mode.h": '''#pragma once
namespace infini_train::autograd {
struct GradMode { static inline thread_local bool on = true; static bool IsEnabled() { return on; } };
struct EnableGradGuard { bool before = GradMode::on; EnableGradGuard() { GradMode::on = true; } ~EnableGradGuard() { GradMode::on = before; } };
struct NoGradGuard { bool before = GradMode::on; NoGradGuard() { GradMode::on = false; } ~NoGradGuard() { GradMode::on = before; } };
}
''',
    "infini_train/include/autograd/function.h": '''#pragma once
#include <functional>
#include <memory>
namespace infini_train { class Tensor; }
namespace infini_train::autograd {
struct FunctionCtx {
    struct SavedTensorHooks {
        std::function<std::shared_ptr<void>(const std::shared_ptr<Tensor> &)> pack;
        std::function<std::shared_ptr<Tensor>(const std::shared_ptr<void> &)> unpack;
    };
    static inline thread_local std::vector<SavedTensorHooks> hooks;
    struct SavedTensorHooksGuard {
        explicit SavedTensorHooksGuard(SavedTensorHooks h) { hooks.push_back(h); }
        ~SavedTensorHooksGuard() { hooks.pop_back(); }
    };
};
}
''',
    "main.cc": '''#include "infini_train/include/tensor.h"
#include "infini_train/include/autocast.h"
#include "infini_train/include/autograd/function.h"
#include "infini_train/include/autograd/grad_mode.h"
#include "infini_train/include/autograd/recompute.h"
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
using namespace infini_train;
using namespace infini_train::autograd;
using recompute::Tensors;
#define CHECK(c) if (!(c)) { std::printf("failed: %s, line %d\\n", #c, __LINE__); std::exit(1); }
int kernels = 0;
struct Saved { std::shared_ptr<void> state; FunctionCtx::SavedTensorHooks hooks; };
// What Function::Apply does, patched: one op that saves its inputs, or its output.
std::shared_ptr<Tensor> op(const std::shared_ptr<Tensor> &x, std::vector<Saved> &graph, bool save_output, float dims = 1) {
    recompute::BeforeForward({x});
    ++kernels;
    auto y = std::make_shared<Tensor>(x->value * 2 + tls_autocast_context.on);
    const auto hooks = FunctionCtx::hooks.back();
    const auto saved = save_output ? y->Detach() : x;
    saved->dims = {int64_t(dims)};
    auto state = hooks.pack(saved);
    if (recompute::IsRecomputing()) { y->set_requires_grad(x->requires_grad()); return y; }
    graph.push_back({state, hooks});
    return y;
}
float read(const Saved &s) { return s.hooks.unpack(s.state)->value; }
int main() {
    std::vector<Saved> graph;
    const auto x = std::make_shared<Tensor>(3.f, true);
    int runs = 0;
    const auto mlp = [&](const Tensors &in) -> Tensors {
        ++runs;
        return {op(op(op(in[0], graph, false), graph, true), graph, false)};
    };
    const auto y = recompute::Checkpoint(mlp, {x}, "layer 1 mlp");
    CHECK(y[0]->value == 24 && runs == 1 && kernels == 3);
    tls_autocast_context.on = true;  // of the backward, not of the forward
    {
        const NoGradGuard backward;
        CHECK(read(graph[2]) == 12 && read(graph[1]) == 12 && read(graph[0]) == 3);
        CHECK(!GradMode::IsEnabled());
    }
    CHECK(tls_autocast_context.on);
    tls_autocast_context.on = false;
    CHECK(runs == 2 && kernels == 5);  // the last operation did not run again
    graph.clear();
    // Its last tensor an output: all of it runs again.
    const auto z = recompute::Checkpoint([&](const Tensors &in) -> Tensors { return {op(op(in[0], graph, false), graph, true)}; }, {x}, "r");
    kernels = 0;
    CHECK(read(graph[1]) == 12 && kernels == 2);
    graph.clear();
    // A nested region, and errors.
    recompute::Checkpoint([&](const Tensors &in) { return recompute::Checkpoint(mlp, {op(in[0], graph, false)}, "inner"); }, {x}, "outer");
    CHECK(read(graph[3]) == 24 && read(graph[0]) == 3);
    graph.clear();
    int calls = 0;
    recompute::Checkpoint([&](const Tensors &in) -> Tensors { return {op(in[0]->Detach(), graph, true, ++calls)}; }, {x}, "layer 2 mlp");
    try { read(graph[0]); CHECK(false); } catch (const std::exception &e) { std::printf("%s\\n", e.what()); }
    graph.clear();
    const NoGradGuard no_grad;
    kernels = 0;
    FunctionCtx::SavedTensorHooksGuard plain({[](const std::shared_ptr<Tensor> &t) -> std::shared_ptr<void> { return t; }, {}});
    recompute::Checkpoint([&](const Tensors &in) -> Tensors { return {op(in[0], graph, true)}; }, {x}, "r");
    CHECK(kernels == 1);
    std::puts("all right");
}
''',
}


def test_the_adapter_runs_on_a_framework_of_our_own(tree):
    assert patch("apply", tree).returncode == 0
    for path, text in FRAMEWORK.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    program = tree / "program"
    built = subprocess.run(["g++", "-std=c++20", "-Wall", "-fsanitize=address,undefined", "-I", tree,
                            tree / "main.cc", tree / "infini_train/src/autograd/recompute.cc", "-o", program],
                           capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "recoup: layer 2 mlp: saved tensor 0: the forward saved float32[1], the recompute float32[2]" in ran.stdout
    assert ran.stdout.endswith("all right\n")
