#!/usr/bin/env python3
"""Selective MLP recompute for InfiniTrain (github:InfiniTensor/InfiniTrain): layers get their global
number, ask recoup's plugin, and wrap their MLP in a checkpoint on InfiniTrain's own saved-tensor hooks.

    patch_infinitrain.py apply|revert|status [--dry-run] FOLDER

FOLDER is a checkout. Build it as usual; run its examples with --recoup_plugin=.../librecoup_policy.so and
--recompute_granularity=selective --recompute_modules=mlp --recompute_mlp_num_layers=N, or --recoup_config.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from applier import FilePatch, Need, Patch, main  # noqa: E402
from line_edits import added_file, edit, include  # noqa: E402


# SHA-256 of the added files as versions of the patch before the marks added them.
_UNMARKED = {
    "recompute.h": ("ad8b1ae9d0c0c9f980e1bdba2798451ef141056e90319ec07914ca3c09c472ce",
                    "8a7c13958bd7c17b67626137400d0b93f15677a22c6f69e8ffe56feca9fcd5b6"),
    "recompute.cc": ("d9fe6e7c15b24ae5e42859f1cf0d953299ae1f9f5c1256e5d1e883bf660a3b7d",
                     "4b2907a78bddbade3b7f3e0b5733fdb2e5e13a26a1858e0dc21a72c30886ee5d"),
    "recoup_layer.h": ("defdb4114151e67b53582e94011dbdb5daf49c9094118592cde784104a312ea1",),
    "recoup_layer.cc": ("4cbab33917f6d88ec343e558a0a74c8ca9cb38e8875c1c756126bd8e08526b04",),
    "plugin.h": ("044ad3e11a424a005a2e750732ff2c12739053494f42630c87ff55be291ae075",
                 "95c429615e85d3169461626436ee1f63dc06218b3e862bf3368bb5eb4e813cda",
                 "a5c0a93d4b2cf4da012f2528280363280a021ce619b6c4f3116f465ca745258d"),
    "host.hpp": ("c059205bd279ccb8a9031a2cf5f4d9adf0d5519001a393231e14dcc4ed34dc52",
                 "00559055ba86e21923af294580a739cb24d62d0309866435da65a984ef9a0fff",
                 "c311d049f11ef22aa96733de963323c1f52b60d94eec18f1c825642ce54b2f90"),
    "replay.h": ("3a5b81981018608e4397b4a92c8ecd55e8895f22438f341bf46dba29a0976649",
                 "7491c2bbfac20c3c830a8a746bf5af062b6d53c4c433a5714779f58e35b6c615"),
    "modules.h": ("dc3cb652c2aab77ec02bab7ac8c5cf0693ba4c0f9a6b15f3704b14b750f27cbf",),
}


def _source(path, source):
    return added_file(path, source, digests=_UNMARKED.get(os.path.basename(path), ()))


_NO_GRAPH = '''
// A recompute saves tensors and builds no graph: the forward's own graph is what runs backward.
if (recompute::IsRecomputing()) {
    for (const auto &output : output_tensors) {
        bool requires_grad = !ctx_.IsNonDifferentiable(output);
        bool any_input = false;
        for (const auto &input : input_tensors) { any_input |= input->requires_grad(); }
        output->set_requires_grad(requires_grad && any_input);
    }
    return output_tensors;
}

'''.lstrip("\n")


def _files(_tree):
    transformer = "infini_train/{}/nn/modules/transformer/"
    headers, src = transformer.format("include"), transformer.format("src")
    sources = "patches/infinitrain/sources/"
    return [
        FilePatch(headers + "transformer.h", [
            include("recoup/host.hpp", "infini_train/include/nn/parallel/pp/pipeline_parallel.h"),
            edit("the layer's number", "explicit TransformerLayer(const TransformerConfig &config);",
                  "instead", '''
// layer_number: 1-indexed, global; stage_offset: layers before this pipeline chunk.
explicit TransformerLayer(const TransformerConfig &config, int64_t layer_number = 1, int64_t stage_offset = 0);

recoup::Layer recoup; // what this layer recomputes
'''.lstrip("\n")),
        ]),
        FilePatch(src + "transformer.cc", [
            include("infini_train/include/nn/modules/transformer/recoup_layer.h",
                     "infini_train/include/nn/modules/transformer/mlp.h"),
            edit("the layer asks recoup",
                  "TransformerLayer::TransformerLayer(const nn::TransformerConfig &config) : CloneableModule(kType) {",
                  "instead", '''
TransformerLayer::TransformerLayer(const nn::TransformerConfig &config, int64_t layer_number, int64_t stage_offset)
    : CloneableModule(kType), recoup(RecoupLayer(layer_number, stage_offset, config.n_layer)) {
'''.lstrip("\n")),
            edit("the MLP through recoup",
                  "auto x2 = x1 + (*modules_[kMlpLayerName])((*modules_[kLn2LayerName])({x1}))[0];",
                  "instead",
                  "auto x2 = x1 + RecoupMlp(recoup, modules_[kMlpLayerName], (*modules_[kLn2LayerName])({x1}))[0];\n"),
            edit("chunks number their layers", "auto layer = std::make_shared<TransformerLayer>(config);",
                  "instead",
                  "auto layer = std::make_shared<TransformerLayer>(config, i + 1, start_layer);\n"),
        ]),
        FilePatch("infini_train/src/autograd/function.cc", [
            include("infini_train/include/autograd/recompute.h",
                     "infini_train/include/autograd/grad_mode.h"),
            edit("a function announces its inputs",
                  "for (auto &t : compute_inputs) { tls_autocast_context.Autocast(type_, t); }", "after",
                  "recompute::BeforeForward(compute_inputs);\n"),
            edit("a recompute builds no graph", "bool output_requires_grad = false;", "before",
                  _NO_GRAPH),
        ], legacy=[
            edit("a recompute builds no graph", "bool output_requires_grad = false;", "before",
                  _NO_GRAPH.replace("A recompute saves", "A rerun saves").replace("IsRecomputing", "IsRerunning")),
        ]),
        _source("infini_train/include/autograd/recompute.h", sources + "recompute.h"),
        _source("infini_train/src/autograd/recompute.cc", sources + "recompute.cc"),
        _source(headers + "recoup_layer.h", sources + "recoup_layer.h"),
        _source(src + "recoup_layer.cc", sources + "recoup_layer.cc"),
        _source("recoup/plugin.h", "plugin/include/recoup/plugin.h"),
        _source("recoup/modules.h", "hooks/include/recoup/modules.h"),
        _source("recoup/host.hpp", "plugin/include/recoup/host.hpp"),
        _source("recoup/region.hpp", "plugin/include/recoup/region.hpp"),
        _source("recoup/load.h", "plugin/include/recoup/load.h"),
        _source("recoup/checkpoint/recompute.h", "hooks/include/recoup/checkpoint/recompute.h"),
        # Where versions before the marks put that file.
        FilePatch("recoup/replay.h", digests=_UNMARKED["replay.h"], optional=True),
        FilePatch("recoup/checkpoint/replay.h", digests=_UNMARKED["replay.h"], optional=True),
    ]


PATCH = Patch(
    "InfiniTrain", _files, anchor="infini_train/src/nn/modules/transformer/transformer.cc",
    signs=r"(?i)\brecoup|\brecompute::BeforeForward|\brecompute::Is(?:Rerunning|Recomputing)|config, i \+ 1, start_layer",
    needs=(Need("infini_train/include/autograd/function.h", r"\bSavedTensorHooks\b",
                "FunctionCtx::SavedTensorHooks, which recoup's recompute is built on (recompute.cc)"),),
    within=("infini_train", "recoup"))

if __name__ == "__main__":
    sys.exit(main(PATCH))
