#include "keys.h"

namespace recoup {
namespace {

using Needs = ConfigKey::Needs;

// A new key is a row here.
std::vector<KeyRow> general_rows() {
  return {
      {{"recompute_granularity", "selective or full", "nothing is recomputed", "selective",
        "selective recomputes modules of a layer, full whole layers"},
       [](const Value& v, std::size_t) {
         v.config.granularity =
             v.word({"selective", "full"}) == 1 ? Granularity::kFull : Granularity::kSelective;
       }},
      {{"recompute_modules", "a list of modules", "[core_attn], Megatron-LM's default",
        "[core_attn, mlp]", "which modules are recomputed", Needs::kSelective},
       [](const Value& v, std::size_t) { v.config.modules = v.modules(); }},
      {{"mlp_recompute_level", "full or activation", "full", "activation",
        "what a recomputed MLP keeps: full its input, activation fc1's output, so that no GEMM "
        "runs again",
        Needs::kModule, static_cast<std::size_t>(Module::kMlp)},
       [](const Value& v, std::size_t) {
         v.config.mlp_activation =
             v.word({"full", "activation"}) == 1 ? LayerSet::all() : LayerSet::first(0);
       }},
      {{"mlp_activation_layers",
        "a layer expression",
        "as mlp_recompute_level says",
        "1-12",
        "the layers whose recomputed MLP is at level activation; the others are at full",
        Needs::kModule,
        static_cast<std::size_t>(Module::kMlp),
        {"mlp_recompute_level"}},
       [](const Value& v, std::size_t) { v.config.mlp_activation = v.layers(); }},
      {{"recompute_layer_scope", "global, stage or mlp", "global", "stage",
        "what layer numbers count: the model's layers, the pipeline stage's layers, or, in the "
        "MLP's keys, the model's MLPs without those of MoE layers",
        Needs::kLayerNumbers},
       [](const Value& v, std::size_t) {
         constexpr LayerScope kScopes[] = {LayerScope::kGlobal, LayerScope::kStage,
                                           LayerScope::kMlp};
         v.config.scope = kScopes[v.word({"global", "stage", "mlp"})];
       }},
      {{"distribute_saved_activations", "true or false", "false", "true",
        "each tensor-parallel rank keeps only its part of a checkpoint's input, gathered again in "
        "backward",
        Needs::kGranularity},
       [](const Value& v, std::size_t) { v.config.distribute_saved_activations = v.flag(); }},
      {{"recompute_memory_budget",
        "bytes (74GiB; B, KB, MB, GB, TB, KiB, MiB, GiB, TiB or none), 90% or auto",
        "no budget: what the other keys say is recomputed",
        "74GiB",
        "this rank's device memory, which recoup keeps to by recomputing as little as it must of "
        "what the other keys allow",
        Needs::kSelective,
        kModuleCount,
        {"mlp_recompute_level", "mlp_activation_layers"}},
       [](const Value& v, std::size_t) { v.config.memory_budget = v.memory_budget(); }},
      {{"recompute_method", "uniform or block", "an error with full", "block",
        "how full picks layers: uniform all of them, in chunks that share a checkpoint; "
        "block the first of each pipeline stage",
        Needs::kFull},
       [](const Value& v, std::size_t) {
         v.config.method = v.word({"uniform", "block"}) == 1 ? Method::kBlock : Method::kUniform;
       }},
      {{"recompute_num_layers", "an integer >= 1", "an error with full", "12",
        "the layers of a chunk (uniform), or how many of a stage's first layers (block)",
        Needs::kFull},
       [](const Value& v, std::size_t) { v.config.num_layers = v.count(); }},
  };
}

// The two keys that each module has.
void add_module_rows(std::vector<KeyRow>& rows, std::size_t m) {
  const auto stem = "recompute_" + std::string(kModules[m].name);
  rows.push_back({{stem + "_num_layers", "an integer >= 1", "every layer", "12",
                   "only the first N layers recompute the module", Needs::kModule, m},
                  [](const Value& v, std::size_t module) {
                    v.config.layers[module] = LayerSet::first(v.count());
                  }});
  rows.push_back(
      {{stem + "_layers",
        "a layer expression, or a list of layers",
        "every layer",
        "1-24:2",
        "only these layers recompute the module",
        Needs::kModule,
        m,
        {stem + "_num_layers"}},
       [](const Value& v, std::size_t module) { v.config.layers[module] = v.layers(); }});
}

}  // namespace

const std::vector<KeyRow>& key_rows() {
  static const auto rows = [] {
    auto all = general_rows();
    for (std::size_t m = 0; m < kModuleCount; ++m) add_module_rows(all, m);
    return all;
  }();
  return rows;
}

std::vector<ConfigKey> config_keys() { return {key_rows().begin(), key_rows().end()}; }

std::string ConfigKey::requirement() const {
  switch (needs) {
    case Needs::kNothing:
      return {};
    case Needs::kGranularity:
      return "recompute_granularity";
    case Needs::kSelective:
      return "recompute_granularity: selective";
    case Needs::kFull:
      return "recompute_granularity: full";
    case Needs::kModule:
      return "\"" + std::string(kModules[module].name) + "\" in recompute_modules";
    case Needs::kLayerNumbers:
      return "a key that numbers layers, such as recompute_mlp_num_layers";
  }
  return {};
}

}  // namespace recoup
