// What a policy does, in words for the log.
#include <algorithm>

#include "check.h"
#include "text.h"

namespace recoup {
namespace {

// The layers that have a module, as far as they are known one by one; else the configuration's sets
// are all that can be told.
struct Counted {
  bool known = false;
  std::int64_t of = 0;                     // layers that have the module
  std::int64_t recomputing = 0;            // of these
  std::vector<std::int64_t> recomputed{};  // which, as the configuration numbers them
  std::vector<std::int64_t> activation{};  // and which of these at level activation
};

std::string shortened(const std::string& expression) { return text::printable(expression); }

// "layers 1-12", "the stage's layers 1-2", "MLPs 1-2".
std::string numbered(const Config& config, Module module, const std::string& expression,
                     bool as_one = false) {
  const std::string noun =
      config.scope == LayerScope::kMlp && module == Module::kMlp ? "MLP" : "layer";
  return (config.scope == LayerScope::kStage ? "the stage's " : "") + noun + (as_one ? "" : "s") +
         " " + shortened(expression);
}

std::string numbered(const Config& config, Module module, const std::vector<std::int64_t>& layers) {
  return numbered(config, module, layer_expression(layers), layers.size() == 1);
}

std::string level_of(const Config& config, const Counted& mlps) {
  if (!mlps.known) {
    if (config.mlp_activation.empty()) return "level full";
    if (config.where.count("mlp_activation_layers") == 0) return "level activation";
    return "level activation in " + numbered(config, Module::kMlp, config.mlp_activation.text()) +
           ", else full";
  }
  if (mlps.activation.empty()) return "level full";
  if (mlps.activation.size() == mlps.recomputed.size()) return "level activation";
  return "level activation in " + numbered(config, Module::kMlp, mlps.activation) + ", else full";
}

std::string of_mlps(const Config& config, const Counted& mlps) {
  if (!mlps.known) {
    const auto& set = config.layers_of(Module::kMlp);
    if (set.empty()) return "no MLP recomputed";
    return "the MLPs of " + numbered(config, Module::kMlp, set.text()) + " recomputed (" +
           level_of(config, mlps) + ")";
  }
  auto line = std::to_string(mlps.recomputing) + " of " + std::to_string(mlps.of) +
              (config.scope == LayerScope::kStage ? " MLPs of the stage" : " MLPs") + " recomputed";
  if (mlps.recomputed.empty()) return line;
  return line + " (" + numbered(config, Module::kMlp, mlps.recomputed) + ", " +
         level_of(config, mlps) + ")";
}

// "core_attn everywhere", "moe_act in every MoE layer", "layernorm in layers 1-3".
std::string of_module(const Config& config, std::size_t m, const Counted& counted) {
  const auto module = static_cast<Module>(m);
  const std::string name = kModules[m].name;
  const bool moe = kModules[m].layers == RECOUP_MOE_LAYER;
  const auto& set = config.layers[m];
  if (set.text() == "all" ||
      (counted.known && counted.of > 0 && counted.of == counted.recomputing)) {
    return name + (moe ? " in every MoE layer" : " everywhere");
  }
  if (!counted.known) {
    return name + " in " + numbered(config, module, set.text()) + (moe ? " that are MoE" : "");
  }
  if (counted.recomputed.empty()) return name + " nowhere";
  return name + " in " + numbered(config, module, counted.recomputed);
}

std::string of_full(const Config& config, const Model& model) {
  const auto n = *config.num_layers;
  const bool one_stage = model.num_layers > 0 && (model.stage_num_layers == 0 ||
                                                  model.stage_num_layers == model.num_layers);
  const auto there = one_stage ? model.num_layers : model.stage_num_layers;
  const std::string stage = one_stage ? "" : " of the stage";
  if (*config.method == Method::kUniform) {
    const auto groups = there > 0 ? (there - 1) / n + 1 : 0;
    return (there > 0 ? "all " + std::to_string(there) + " layers" + stage : "all layers") +
           " recomputed whole, " + std::to_string(n) + " to a checkpoint" +
           (groups > 0 ? " (" + std::to_string(groups) + " of them)" : "");
  }
  if (there == 0)
    return "the first " + std::to_string(n) + " layers of each stage recomputed whole";
  const auto taken = std::min(n, there);
  return std::to_string(taken) + " of " + std::to_string(there) + " layers" + stage +
         " recomputed whole (" + LayerSet::first(taken).text() + ")";
}

// The whole line; `counted` tells of each module.
template <class Count>
std::string line(const Config& config, const Model& model, const Count& counted) {
  std::string text;
  if (config.granularity == Granularity::kNone) return "nothing is recomputed";
  if (config.granularity == Granularity::kFull) {
    text = of_full(config, model);
  } else {
    text = config.has(Module::kMlp) ? of_mlps(config, counted(Module::kMlp)) : "no MLP recomputed";
    for (std::size_t m = 0; m < kModuleCount; ++m) {
      const auto module = static_cast<Module>(m);
      if (!config.modules[m] || module == Module::kMlp) continue;
      text += ", " + of_module(config, m, counted(module));
    }
  }
  if (config.memory_budget) {
    text += ", no more of it than a budget of " + config.memory_budget->text() + " needs";
  }
  return text + (config.distribute_saved_activations ? ", saved activations distributed" : "");
}

void sort_once(std::vector<std::int64_t>& layers) {
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
}

}  // namespace

std::string Policy::summary() const {
  return line(config_, model_, [&](Module module) {
    Counted counted;
    const auto all = total(module);
    const auto kind = kModules[static_cast<std::size_t>(module)].layers;
    // Which layers are MoE is not known yet, unless none is or the configuration counts MLPs.
    const bool alike = kind == RECOUP_EVERY_LAYER ||
                       (module == Module::kMlp &&
                        (config_.scope == LayerScope::kMlp ||
                         model_.num_mlps.value_or(model_.num_layers) == model_.num_layers));
    if (!all || *all > kMostListed || !alike) return counted;
    counted.known = true;
    counted.of = *all;
    counted.recomputed = config_.layers_of(module).members(*all);
    counted.recomputing = static_cast<std::int64_t>(counted.recomputed.size());
    for (const auto n : counted.recomputed) {
      if (config_.mlp_activation.contains(n, *all)) counted.activation.push_back(n);
    }
    return counted;
  });
}

std::string Policy::summary(const std::vector<LayerInfo>& layers) const {
  return line(config_, model_, [&](Module module) {
    Counted counted;
    counted.known = true;
    for (const auto& layer : layers) {
      if (!has_module(layer, module)) continue;
      ++counted.of;
      if (!recomputes(module, layer)) continue;
      ++counted.recomputing;
      const auto n = number(module, layer);
      counted.recomputed.push_back(n);
      if (mlp_level(layer) == MlpLevel::kActivation) counted.activation.push_back(n);
    }
    sort_once(counted.recomputed);
    sort_once(counted.activation);
    return counted;
  });
}

std::string Policy::describe(const LayerInfo& layer) const {
  const bool mlp = recomputes(Module::kMlp, layer);
  auto text =
      "Layer " + std::to_string(layer.number) + ": recompute_mlp=" + (mlp ? "True" : "False");
  if (mlp) text += mlp_level(layer) == MlpLevel::kFull ? ", level full" : ", level activation";
  std::string others;
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    const auto module = static_cast<Module>(m);
    if (module == Module::kMlp || !recomputes(module, layer)) continue;
    others += (others.empty() ? ", also " : ", ") + std::string(kModules[m].name);
  }
  text += others;
  if (config_.granularity != Granularity::kFull) return text;
  const auto group = full_group(layer);
  if (*config_.method == Method::kBlock) return text + (group > 0 ? ", whole layer" : "");
  if (group > 1) {
    return text + ", whole layers " + std::to_string(layer.number) + "-" +
           std::to_string(layer.number + group - 1) + " in one checkpoint";
  }
  if (group == 1) return text + ", whole layer";
  const auto in_stage = layer.number - layer.stage_offset;
  const auto first = layer.number - (in_stage - 1) % *config_.num_layers;
  return text + ", whole layer in layer " + std::to_string(first) + "'s checkpoint";
}

}  // namespace recoup
