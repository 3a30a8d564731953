#include "recoup/policy/policy.h"

#include <cstdlib>
#include <utility>

#include "check.h"
#include "text.h"

// Set by CMake; empty where the constant mode was not asked for at build time.
#ifndef RECOUP_RECOMPUTE_MLP_NUM_LAYERS
#define RECOUP_RECOMPUTE_MLP_NUM_LAYERS ""
#endif

namespace recoup {
namespace {

constexpr char kVariable[] = "RECOUP_RECOMPUTE_MLP_NUM_LAYERS";

}  // namespace

Result<std::optional<Override>> Policy::find_override() {
  const auto read = [](const std::string& value,
                       const std::string& source) -> Result<std::optional<Override>> {
    const auto n = text::to_integer(value);
    if (!n || *n < 0) {
      return Error{source + ": must be an integer >= 0 (0: no layer), not " + text::quoted(value)};
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
  Sources sources(config);
  const auto mlp = static_cast<std::size_t>(Module::kMlp);
  policy.notices_ = config.notices;
  if (override) {
    if (config.granularity == Granularity::kFull) {
      return Error{override->source + ": conflicts with " +
                   place_of(config, "recompute_granularity") +
                   ": full, which recomputes whole layers; unset one of the two"};
    }
    auto notice = override->source + "=" + std::to_string(override->mlp_num_layers) +
                  " decides which layers recompute their MLP";
    if (!sources.layers[mlp].empty()) notice += " and OVERRIDES " + sources.layers[mlp];
    policy.notices_.push_back(notice);
    config.granularity = Granularity::kSelective;
    config.modules[mlp] = true;
    config.layers[mlp] = LayerSet::first(override->mlp_num_layers);
    sources.layers[mlp] = override->source;
  }
  policy.config_ = std::move(config);
  policy.model_ = model;
  if (auto why = refusal(policy, model, sources); !why.empty()) return Error{std::move(why)};
  for (auto& notice : warnings(policy, model, sources))
    policy.notices_.push_back(std::move(notice));
  return policy;
}

std::optional<std::int64_t> Policy::total(Module module) const {
  const auto known = [](std::int64_t n) {
    return n > 0 ? std::optional<std::int64_t>(n) : std::nullopt;
  };
  if (config_.scope == LayerScope::kStage) return known(model_.stage_num_layers);
  if (config_.scope == LayerScope::kMlp && module == Module::kMlp) return model_.num_mlps;
  return known(model_.num_layers);
}

std::int64_t Policy::number(Module module, const LayerInfo& layer) const {
  if (config_.scope == LayerScope::kStage) return layer.number - layer.stage_offset;
  if (config_.scope == LayerScope::kMlp && module == Module::kMlp) return layer.mlp_number;
  return layer.number;
}

std::string Policy::problem_with(const LayerInfo& layer) const {
  if (config_.scope != LayerScope::kMlp || layer.is_moe || layer.mlp_number > 0) return {};
  return place_of(config_, "recompute_layer_scope") + ": layer " + std::to_string(layer.number) +
         " does not say which of the model's MLPs it has; allowed are global and stage (the host's "
         "author must set recoup_layer_v1.mlp_number, LayerInfo::mlp_number)";
}

bool Policy::recomputes(Module module, const LayerInfo& layer) const {
  if (config_.granularity != Granularity::kSelective || !config_.has(module)) return false;
  if (!has_module(layer, module)) return false;
  const auto n = number(module, layer);
  return n >= 1 && config_.layers_of(module).contains(n, total(module).value_or(0));
}

MlpLevel Policy::mlp_level(const LayerInfo& layer) const {
  return config_.mlp_activation.contains(number(Module::kMlp, layer),
                                         total(Module::kMlp).value_or(0))
             ? MlpLevel::kActivation
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

}  // namespace recoup
