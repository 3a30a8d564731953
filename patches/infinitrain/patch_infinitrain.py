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


_TRANSFORMER = "infini_train/{}/nn/modules/transformer/"
_HEADERS, _SRC = _TRANSFORMER.format("include"), _TRANSFORMER.format("src")
_TENSORS = "std::vector<std::shared_ptr<Tensor>>"


def _decisions(after):
    """A module's header: what recoup decided for its layer."""
    return [include("recoup/host.hpp", "infini_train/include/nn/modules/transformer/transformer_config.h"),
            edit("what the layer recomputes", after, "after",
                 "\nrecoup::Layer recoup_layer; // what the layer recomputes; see recoup_layer.h\n")]


def _recoup_layer(after):
    return include("infini_train/include/nn/modules/transformer/recoup_layer.h", after)


# The layers of a chunk, on upstream's master and on its branch of activation checkpointing.
_RUN_LAYERS = [
    edit("layers with RoPE through recoup",
         "for (auto &h : *std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName])) {\n"
         "    x1 = (*h)({x1, freqs_view, start_pos_ptr, mask})[0];\n"
         "}", "instead",
         "x1 = RecoupLayers(std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName]),\n"
         "                  {x1, freqs_view, start_pos_ptr, mask})[0];\n"),
    edit("layers without RoPE through recoup",
         "for (auto &h : *std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName])) { x1 = (*h)({x1})[0]; }",
         "instead", "x1 = RecoupLayers(std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName]), {x1})[0];\n"),
]
_RUN_LAYERS_WITH_UPSTREAMS_CHECKPOINT = [
    edit("layers through recoup",
         "for (size_t layer_idx = start; layer_idx < end; ++layer_idx) {\n"
         "    layer_inputs[0] = hidden;\n"
         "    hidden = (*(*layers)[layer_idx])(layer_inputs)[0];\n"
         "}", "instead", "hidden = RecoupLayers(layers, layer_inputs, start, end)[0];\n"),
    edit("selective is recoup's",
         'LOG(FATAL) << "Selective activation recompute is not implemented yet. Use full layer recompute.";', "instead",
         "return false; // the layers do it themselves, as recoup decided\n"),
]

_MLP = [
    _recoup_layer("infini_train/include/nn/modules/transformer/mlp.h"),
    edit("the MLP after fc1 (GELU)", "auto x1 = (*modules_[kCFcLayerName])(x);", "after", f'''
if (recoup_layer.mlp_activation_only()) {{
    auto rest = [gelu = modules_[kGeluLayerName], proj = modules_[kCProjLayerName]](const {_TENSORS} &h) {{
        return (*proj)((*gelu)(h));
    }};
    return RecoupCheckpoint(recoup_layer, "mlp", rest, x1);
}}
'''.lstrip("\n")),
    edit("the MLP after fc1 (SwiGLU)", "auto x2 = (*modules_[kCFc2LayerName])(x)[0];", "after", f'''
if (recoup_layer.mlp_activation_only()) {{
    auto rest = [silu = modules_[kSiluLayerName], proj = modules_[kCProjLayerName]](const {_TENSORS} &h) {{
        return (*proj)({{h[0] * (*silu)({{h[1]}})[0]}});
    }};
    return RecoupCheckpoint(recoup_layer, "mlp", rest, {{x1, x2}});
}}
'''.lstrip("\n")),
]


def _core_attn(name, scale, captures, within):
    return [
        edit(f"core attention begins ({name})", f"auto att = q->Matmul(k->Transpose(-2, -1)) * (1.0 / std::sqrt({scale}));",
             "before", f"auto core_attn = [{captures}](const {_TENSORS} &qkv) -> {_TENSORS} {{\n"
                       "    const auto &q = qkv[0], &k = qkv[1], &v = qkv[2];\n"),
        edit(f"core attention ends ({name})", "auto y = att->Matmul(v);", "instead", f'''
    return {{att->Matmul(v)}}; // {name}
}};
auto y = recoup_layer.recomputes(RECOUP_CORE_ATTN)
           ? RecoupCheckpoint(recoup_layer, "core_attn", core_attn, {{q, k, v}})[0]
           : core_attn({{q, k, v}})[0];
'''.lstrip("\n"), within),
    ]


_ATTENTION = [
    _recoup_layer("infini_train/include/nn/modules/transformer/causal_self_attention.h"),
    *_core_attn("standard", "head_dim", "this, T, head_dim", r"^CausalSelfAttention::ForwardStandard\("),
    *_core_attn("RoPE", "static_cast<float>(D)", "mask, D", r"^CausalSelfAttention::ForwardWithRoPE\("),
]

# What versions before the marks wrote into transformer.h and transformer.cc.
_LEGACY_HEADER = [
    include("recoup/host.hpp", "infini_train/include/nn/parallel/pp/pipeline_parallel.h"),
    edit("the layer's number", "explicit TransformerLayer(const TransformerConfig &config);", "instead", '''
// layer_number: 1-indexed, global; stage_offset: layers before this pipeline chunk.
explicit TransformerLayer(const TransformerConfig &config, int64_t layer_number = 1, int64_t stage_offset = 0);

recoup::Layer recoup; // what this layer recomputes
'''.lstrip("\n")),
]
_LEGACY_SOURCE = [
    edit("the layer asks recoup",
         "TransformerLayer::TransformerLayer(const nn::TransformerConfig &config) : CloneableModule(kType) {", "instead",
         '''
TransformerLayer::TransformerLayer(const nn::TransformerConfig &config, int64_t layer_number, int64_t stage_offset)
    : CloneableModule(kType), recoup(RecoupLayer(layer_number, stage_offset, config.n_layer)) {
'''.lstrip("\n")),
    edit("the MLP through recoup",
         "auto x2 = x1 + (*modules_[kMlpLayerName])((*modules_[kLn2LayerName])({x1}))[0];", "instead",
         "auto x2 = x1 + RecoupMlp(recoup, modules_[kMlpLayerName], (*modules_[kLn2LayerName])({x1}))[0];\n"),
    edit("chunks number their layers", "auto layer = std::make_shared<TransformerLayer>(config);", "instead",
         "auto layer = std::make_shared<TransformerLayer>(config, i + 1, start_layer);\n"),
]


def _text(tree, path):
    try:
        with open(os.path.join(tree, path), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def _files(tree):
    sources = "patches/infinitrain/sources/"
    upstreams_checkpoint = os.path.exists(os.path.join(tree, "infini_train/include/utils/checkpoint.h"))
    # Context parallelism has an attention of its own; there core_attn is not offered.
    attention = _text(tree, _SRC + "causal_self_attention.cc").count("auto y = att->Matmul(v);") == 2
    own_checkpoint = [
        FilePatch("infini_train/src/autograd/function.cc", [
            include("infini_train/include/autograd/recompute.h", "infini_train/include/autograd/grad_mode.h"),
            edit("a function announces its inputs",
                 "for (auto &t : compute_inputs) { tls_autocast_context.Autocast(type_, t); }", "after",
                 "recompute::BeforeForward(compute_inputs);\n"),
            edit("a recompute builds no graph", "bool output_requires_grad = false;", "before", _NO_GRAPH),
        ], legacy=[
            edit("a recompute builds no graph", "bool output_requires_grad = false;", "before",
                 _NO_GRAPH.replace("A recompute saves", "A rerun saves").replace("IsRecomputing", "IsRerunning")),
        ]),
        _source("infini_train/include/autograd/recompute.h", sources + "recompute.h"),
        _source("infini_train/src/autograd/recompute.cc", sources + "recompute.cc"),
        _source("recoup/checkpoint/recompute.h", "hooks/include/recoup/checkpoint/recompute.h"),
        _source("recoup/checkpoint/framework.h", "hooks/include/recoup/checkpoint/framework.h"),
        # Where versions before the marks put that file.
        FilePatch("recoup/replay.h", digests=_UNMARKED["replay.h"], optional=True),
        FilePatch("recoup/checkpoint/replay.h", digests=_UNMARKED["replay.h"], optional=True),
    ]
    return [
        FilePatch(_HEADERS + "transformer.h",
                  _decisions("explicit TransformerLayer(const TransformerConfig &config);"), legacy=_LEGACY_HEADER),
        FilePatch(_SRC + "transformer.cc", [
            _recoup_layer("infini_train/include/nn/modules/transformer/mlp.h"),
            edit("the MLP through recoup",
                 "auto x2 = x1 + (*modules_[kMlpLayerName])((*modules_[kLn2LayerName])({x1}))[0];", "instead",
                 "auto x2 = x1 + RecoupMlp(recoup_layer, modules_[kMlpLayerName], (*modules_[kLn2LayerName])({x1}))[0];\n"),
            edit("the layer asks recoup and tells its parts",
                 "auto layer = std::make_shared<TransformerLayer>(config);", "after",
                 "RecoupSetUp(layer.get(), i + 1, start_layer, end_layer - start_layer, config.n_layer);\n"),
            *(_RUN_LAYERS_WITH_UPSTREAMS_CHECKPOINT if upstreams_checkpoint else _RUN_LAYERS),
        ], legacy=_LEGACY_SOURCE),
        FilePatch(_HEADERS + "mlp.h", _decisions("explicit MLP(const TransformerConfig &config);")),
        FilePatch(_SRC + "mlp.cc", _MLP),
        *([FilePatch(_HEADERS + "causal_self_attention.h",
                     _decisions("explicit CausalSelfAttention(const TransformerConfig &config);")),
           FilePatch(_SRC + "causal_self_attention.cc", _ATTENTION)] if attention else []),
        *([] if upstreams_checkpoint else own_checkpoint),
        _source(_HEADERS + "recoup_layer.h", sources + "recoup_layer.h"),
        _source(_SRC + "recoup_layer.cc", sources + "recoup_layer.cc"),
        _source("recoup/plugin.h", "plugin/include/recoup/plugin.h"),
        _source("recoup/modules.h", "hooks/include/recoup/modules.h"),
        _source("recoup/host.hpp", "plugin/include/recoup/host.hpp"),
        _source("recoup/layer.hpp", "plugin/include/recoup/layer.hpp"),
        _source("recoup/region.hpp", "plugin/include/recoup/region.hpp"),
        _source("recoup/load.h", "plugin/include/recoup/load.h"),
    ]


PATCH = Patch(
    "InfiniTrain", _files, anchor="infini_train/src/nn/modules/transformer/transformer.cc",
    signs=r"(?i)\brecoup|\brecompute::BeforeForward|\brecompute::Is(?:Rerunning|Recomputing)|config, i \+ 1, start_layer",
    needs=(Need("infini_train/include/autograd/function.h", r"\bSavedTensorHooks\b",
                "FunctionCtx::SavedTensorHooks, which recoup's recompute is built on (recompute.cc)"),
           Need("infini_train/include/nn/parallel/global.h", r"\bGetCoordOf\b",
                "parallel::global::GetCoordOf(), which says who logs (recoup_layer.cc)"),
           Need("infini_train/include/nn/modules/module.h", r"\bmutable_module\b",
                "Module::mutable_module(), by which a layer's parts are told (recoup_layer.cc)"),
           Need("infini_train/include/utils/checkpoint.h", r"\bCheckpoint\(const CheckpointForwardFn &",
                "utils::checkpoint::Checkpoint(forward, inputs, ...) as recoup calls it (recoup_layer.cc)")),
    within=("infini_train", "recoup"))

if __name__ == "__main__":
    sys.exit(main(PATCH))
