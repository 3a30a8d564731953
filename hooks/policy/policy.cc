#include "recoup/policy/policy.h"

#include <algorithm>
#include <cstdlib>

#include "text.h"

// Set by CMake; empty where the constant mode was not asked for at build time.
#ifndef RECOUP_RECOMPUTE_MLP_NUM_LAYERS
#define RECOUP_RECOMPUTE_MLP_NUM_LAYERS ""
#endif

namespace recoup {
namespace {

constexpr char kVariable[] = "RECOUP_RECOMPUTE_MLP_NUM_LAYERS";

std::string place_of(const Config& config, const std::string& key) {
  const auto at = config.where.find(key);
  return at == config.where.end() ? key : at->second + ": " + key;
}

// The key that set the layers of `module`, empty where none did.
std::string layers_key(const Config& config, std::size_t module) {
  for (const char* suffix : {"_num_layers", "_layers"}) {
    const auto key = std::string("recompute_") + kModules[module].name + suffix;
    if (config.where.count(key) > 0) return key;
  }
  return {};
}

// What is asked of a host that does not offer it, and what its author would have to set. Empty
// where nothing is.
std::string not_offered(const Config& config, const Model& model) {
  const auto refusal = [&](const std::string& key, const std::string& what,
                           const std::string& bit) {
    return place_of(config, key) + ": this host " + what + " (its author must set " + bit +
           " in recoup_host_v1.capabilities, HostOptions::capabilities)";
  };
  if (config.granularity == Granularity::kFull && !model.full) {
    return refusal("recompute_granularity", "does not recompute whole layers; allowed is selective",
                   "RECOUP_CAN_FULL");
  }
  if (config.distribute_saved_activations && !model.distribute) {
    return refusal("distribute_saved_activations",
                   "does not distribute saved activations; allowed is false",
                   "RECOUP_CAN_DISTRIBUTE");
  }
  if (config.per_stage && !model.stages) {
    return refusal("recompute_layer_scope",
                   "does not say where its pipeline stages begin; allowed is global",
                   "RECOUP_CAN_STAGES");
  }
  return {};
}

}  // namespace

Result<std::optional<Override>> Policy::find_override() {
  const auto read = [](const std::string& value,
                       const std::string& source) -> Result<std::optional<Override>> {
    const auto n = text::to_integer(value);
    if (!n || *n < 0) {
      return Error{source + ": must be an integer >= 0 (0: no layer), not \"" + value + "\""};
    }
    return std::optional<Override>(Override{*n, source});
  };
  const char* variable = std::getenv(kVariable);
  if (variable != nullptr && *variable != '\0') {
    return read(variable, std::string("environment variable ") + kVariable);
  }
  const std::string constant = RECOUP_RECOMPUTE_MLP_NUM_LAYERS;
  if (!constant.empty()) return read(constant, std::string("CMake constant ") + kVariable);
  return std::optional<Override>();
}

Result<Policy> Policy::create(Config config, std::optional<Override> override, const Model& model) {
  Policy policy;
  const auto mlp = static_cast<std::size_t>(Module::kMlp);
  if (override) {
    if (config.granularity == Granularity::kFull) {
      return Error{override->source + ": conflicts with " +
                   place_of(config, "recompute_granularity") +
                   ": full, which recomputes whole layers; unset one of the two"};
    }
    const auto key = layers_key(config, mlp);
    auto notice = override->source + "=" + std::to_string(override->mlp_num_layers) +
                  " decides which layers recompute their MLP";
    if (!key.empty()) notice += " and OVERRIDES " + place_of(config, key);
    policy.notices_.push_back(notice);
    if (config.granularity == Granularity::kNone) config.granularity = Granularity::kSelective;
    config.modules[mlp] = true;
    config.layers[mlp] = LayerSet::first(override->mlp_num_layers);
  }

  if (const auto why = not_offered(config, model); !why.empty()) return Error{why};

  // Why the host cannot tell which layers `set` means, or empty; `key` set it.
  const auto uncountable = [&](const LayerSet& set, const std::string& key) {
    if (policy.total_ > 0 || !set.needs_total()) return std::string();
    return place_of(config, key) +
           ": counts from the last layer, but this host does not say how many layers there are";
  };
  policy.total_ = config.per_stage ? model.stage_num_layers : model.num_layers;
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    if (!config.modules[m]) continue;
    if (model.modules && std::find(model.modules->begin(), model.modules->end(),
                                   kModules[m].name) == model.modules->end()) {
      return Error{place_of(config, "recompute_modules") + ": this host cannot recompute \"" +
                   kModules[m].name + "\"; " +
                   (model.modules->empty()
                        ? "it says of no module that it can: its author must set "
                          "recoup_host_v1.modules (HostOptions::modules)"
                        : "it can recompute " + text::one_of(*model.modules))};
    }
    const auto key = layers_key(config, m);
    if (const auto why = uncountable(config.layers[m], key); !why.empty()) return Error{why};
    const auto named = config.layers[m].largest_named();
    if (policy.total_ > 0 && named > policy.total_) {
      policy.notices_.push_back((key.empty() ? std::string(kVariable) : place_of(config, key)) +
                                ": names layer " + std::to_string(named) + ", but there are " +
                                std::to_string(policy.total_));
    }
  }
  const std::string level_key = config.where.count("mlp_recompute_level") > 0
                                    ? "mlp_recompute_level"
                                    : "mlp_activation_layers";
  if (const auto why = uncountable(config.mlp_activation, level_key); !why.empty()) {
    return Error{why};
  }
  if (!config.mlp_activation.empty() && !model.mlp_activation) {
    return Error{place_of(config, level_key) +
                 ": this host cannot recompute the activation alone; allowed is full"};
  }
  policy.config_ = std::move(config);
  return policy;
}

std::int64_t Policy::number(const LayerInfo& layer) const {
  return config_.per_stage ? layer.number - layer.stage_offset : layer.number;
}

bool Policy::recomputes(Module module, const LayerInfo& layer) const {
  if (config_.granularity != Granularity::kSelective || !config_.has(module)) return false;
  const auto has_it = kModules[static_cast<std::size_t>(module)].layers;
  if (has_it != RECOUP_EVERY_LAYER && (has_it == RECOUP_MOE_LAYER) != layer.is_moe) return false;
  return config_.layers_of(module).contains(number(layer), total_);
}

MlpLevel Policy::mlp_level(const LayerInfo& layer) const {
  return config_.mlp_activation.contains(number(layer), total_) ? MlpLevel::kActivation
                                                                : MlpLevel::kFull;
}

std::int64_t Policy::full_group(const LayerInfo& layer) const {
  if (config_.granularity != Granularity::kFull) return 0;
  const auto n = *config_.num_layers;
  // Megatron-LM counts both methods within the pipeline stage.
  const auto in_stage = layer.number - layer.stage_offset;
  if (*config_.method == Method::kBlock) return in_stage <= n ? 1 : 0;
  return (in_stage - 1) % n == 0 ? n : 0;
}

std::string Policy::describe(const LayerInfo& layer) const {
  return "Layer " + std::to_string(layer.number) +
         ": recompute_mlp=" + (recomputes(Module::kMlp, layer) ? "True" : "False");
}

}  // namespace recoup
