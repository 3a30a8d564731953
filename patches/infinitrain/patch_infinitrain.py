#!/usr/bin/env python3
"""Selective MLP recompute for InfiniTrain (github:InfiniTensor/InfiniTrain): layers get their global
number, ask recoup's plugin, and wrap their MLP in a checkpoint on InfiniTrain's own saved-tensor hooks.

    patch_infinitrain.py apply|revert|status [--dry-run] FOLDER

FOLDER is a checkout. Build it as usual; run its examples with --recoup_plugin=.../librecoup_policy.so and
--recompute_granularity=selective --recompute_modules=mlp --recompute_mlp_num_layers=N, or --recoup_config.
"""
import os
import re
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "patches"))
from applier import Edit, FilePatch, Patch, Site, main  # noqa: E402


def _line(line, place, within=None):
    """Finds sites at a line of the upstream text, whatever its indentation: `before`, `after` or
    `instead` of it; `within`, only after the first match of that pattern."""
    def sites(text):
        start = 0
        if within:
            match = re.search(within, text)
            if not match:
                return []
            start = match.end()
        found = []
        for match in re.finditer(r"^([ \t]*)" + re.escape(line) + r"\n", text, re.MULTILINE):
            if match.start() < start:
                continue
            spans = {"before": (match.start(),) * 2, "after": (match.end(),) * 2,
                     "instead": match.span()}
            found.append(Site(*spans[place], match.group(1)))
        return found[:1] if within else found
    return sites


def _edit(name, line, place, lines, within=None):
    return Edit(name, f"the line `{line}`", _line(line, place, within), lines,
                replaced=line + "\n" if place == "instead" else "")


def _include(name, after):
    return _edit(f"#include {name}", f'#include "{after}"', "after", f'#include "{name}"\n')


def _source(path, source):
    with open(os.path.join(ROOT, source), "rb") as file:
        return FilePatch(path, content=file.read())


def _files(_tree):
    transformer = "infini_train/{}/nn/modules/transformer/"
    include, src = transformer.format("include"), transformer.format("src")
    sources = "patches/infinitrain/sources/"
    return [
        FilePatch(include + "transformer.h", [
            _include("recoup/host.hpp", "infini_train/include/nn/parallel/pp/pipeline_parallel.h"),
            _edit("the layer's number", "explicit TransformerLayer(const TransformerConfig &config);",
                  "instead", '''
// layer_number: 1-indexed, global; stage_offset: layers before this pipeline chunk.
explicit TransformerLayer(const TransformerConfig &config, int64_t layer_number = 1, int64_t stage_offset = 0);

recoup::Layer recoup; // what this layer recomputes
'''.lstrip("\n")),
        ]),
        FilePatch(src + "transformer.cc", [
            _include("infini_train/include/nn/modules/transformer/recoup_layer.h",
                     "infini_train/include/nn/modules/transformer/mlp.h"),
            _edit("the layer asks recoup",
                  "TransformerLayer::TransformerLayer(const nn::TransformerConfig &config) : CloneableModule(kType) {",
                  "instead", '''
TransformerLayer::TransformerLayer(const nn::TransformerConfig &config, int64_t layer_number, int64_t stage_offset)
    : CloneableModule(kType), recoup(RecoupLayer(layer_number, stage_offset, config.n_layer)) {
'''.lstrip("\n")),
            _edit("the MLP through recoup",
                  "auto x2 = x1 + (*modules_[kMlpLayerName])((*modules_[kLn2LayerName])({x1}))[0];",
                  "instead",
                  "auto x2 = x1 + RecoupMlp(recoup, modules_[kMlpLayerName], (*modules_[kLn2LayerName])({x1}))[0];\n"),
            _edit("chunks number their layers", "auto layer = std::make_shared<TransformerLayer>(config);",
                  "instead",
                  "auto layer = std::make_shared<TransformerLayer>(config, i + 1, start_layer);\n"),
        ]),
        FilePatch("infini_train/src/autograd/function.cc", [
            _include("infini_train/include/autograd/recompute.h",
                     "infini_train/include/autograd/grad_mode.h"),
            _edit("a function announces its inputs",
                  "for (auto &t : compute_inputs) { tls_autocast_context.Autocast(type_, t); }", "after",
                  "recompute::BeforeForward(compute_inputs);\n"),
            _edit("a recompute builds no graph", "bool output_requires_grad = false;", "before", '''
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

'''.lstrip("\n")),
        ]),
        _source("infini_train/include/autograd/recompute.h", sources + "recompute.h"),
        _source("infini_train/src/autograd/recompute.cc", sources + "recompute.cc"),
        _source(include + "recoup_layer.h", sources + "recoup_layer.h"),
        _source(src + "recoup_layer.cc", sources + "recoup_layer.cc"),
        _source("recoup/plugin.h", "plugin/include/recoup/plugin.h"),
        _source("recoup/modules.h", "hooks/include/recoup/modules.h"),
        _source("recoup/host.hpp", "plugin/include/recoup/host.hpp"),
        _source("recoup/checkpoint/recompute.h", "hooks/include/recoup/checkpoint/recompute.h"),
    ]


PATCH = Patch("InfiniTrain", _files)

if __name__ == "__main__":
    sys.exit(main(PATCH))
