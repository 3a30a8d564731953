#include "check.h"

#include <algorithm>

#include "keys.h"
#include "text.h"

namespace recoup {
namespace {

constexpr auto kMlpIndex = static_cast<std::size_t>(Module::kMlp);

// A capability that the host does not have, and the bit that its author would have to set.
std::string not_offered(const Config& config, const Model& model) {
  const auto missing = [&](const std::string& key, const std::string& what,
                           const std::string& bit) {
    return place_of(config, key) + ": this host " + what + " (its author must set " + bit +
           " in recoup_host_v1.capabilities, HostOptions::capabilities)";
  };
  if (config.granularity == Granularity::kFull && !model.full) {
    return missing("recompute_granularity", "does not recompute whole layers; allowed is selective",
                   "RECOUP_CAN_FULL");
  }
  if (config.distribute_saved_activations && !model.distribute) {
    return missing("distribute_saved_activations",
                   "does not distribute saved activations; allowed is false",
                   "RECOUP_CAN_DISTRIBUTE");
  }
  if (config.scope == LayerScope::kStage && !model.stages) {
    return missing("recompute_layer_scope",
                   "does not say where its pipeline stages begin; allowed is global",
                   "RECOUP_CAN_STAGES");
  }
  if (config.memory_budget && !model.budget) {
    return missing("recompute_memory_budget", "cannot keep a memory budget; unset it",
                   "RECOUP_CAN_BUDGET");
  }
  return {};
}

// The modules that the host must be able to recompute.
std::string not_recomputable(const Config& config, const Model& model) {
  if (!model.modules) return {};
  const auto& can = *model.modules;
  const auto has = [&](const char* name) {
    return std::find(can.begin(), can.end(), name) != can.end();
  };
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    const auto* name = kModules[m].name;
    if (!config.modules[m] || has(name)) continue;
    const auto cannot = std::string("this host cannot recompute \"") + name + "\"";
    if (can.empty()) {
      return place_of(config, "recompute_modules") + ": " + cannot +
             "; it says of no module that it can: its author must set recoup_host_v1.modules "
             "(HostOptions::modules)";
    }
    const bool is_default = config.where.count("recompute_modules") == 0 &&
                            config.where.count("recompute_granularity") > 0 &&
                            m == static_cast<std::size_t>(Module::kCoreAttn);
    if (is_default) {
      return place_of(config, "recompute_granularity") +
             ": selective without recompute_modules means [core_attn], and " + cannot +
             "; write recompute_modules: [" + (has("mlp") ? "mlp" : can.front()) + "]";
    }
    return place_of(config, "recompute_modules") + ": " + cannot + "; it can recompute " +
           text::one_of(can);
  }
  return {};
}

// Keys of the file that do nothing beside the rest.
std::string without_effect(const Config& config, const Sources& sources) {
  const auto numbers = [&](std::size_t m) { return !sources.layers[m].empty(); };
  bool counted = numbers(kMlpIndex) || config.where.count("mlp_activation_layers") > 0;
  if (config.scope != LayerScope::kMlp) {
    for (std::size_t m = 0; m < kModuleCount; ++m) counted = counted || numbers(m);
  }
  if (config.where.count("recompute_layer_scope") > 0 && !counted) {
    const auto& rows = key_rows();
    const auto row = std::find_if(rows.begin(), rows.end(), [](const auto& r) {
      return r.needs == ConfigKey::Needs::kLayerNumbers;
    });
    return place_of(config, row->name) + ": requires " + row->requirement();
  }
  if (config.memory_budget) {
    bool any = false;
    for (std::size_t m = 0; m < kModuleCount; ++m) {
      any = any || (config.modules[m] && !config.layers[m].empty());
    }
    if (!any) {
      return place_of(config, "recompute_memory_budget") +
             ": nothing may be recomputed; name modules in recompute_modules";
    }
  }
  return {};
}

// Layers that count from an end that the host does not name.
std::string uncountable(const Policy& policy, const Sources& sources) {
  const auto& config = policy.config();
  const auto why = [&](const LayerSet& set, Module module, const std::string& source) {
    if (policy.total(module) || !set.needs_total()) return std::string();
    const bool mlps = config.scope == LayerScope::kMlp && module == Module::kMlp;
    const bool stage = config.scope == LayerScope::kStage;
    return source + ": counts from the last layer, but this host does not say how many " +
           (mlps ? "MLPs" : "layers") + (stage ? " its stage has" : " there are") +
           " (its author must set " +
           (mlps    ? "num_mlps"
            : stage ? "stage_num_layers"
                    : "num_layers") +
           " in recoup_host_v1, HostOptions)";
  };
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    if (!config.modules[m]) continue;
    const auto text = why(config.layers[m], static_cast<Module>(m), sources.layers[m]);
    if (!text.empty()) return text;
  }
  return why(config.mlp_activation, Module::kMlp, sources.level);
}

// "2-3, 5" of terms, three at most.
std::string some(const std::vector<std::string>& terms) {
  std::string text;
  for (std::size_t i = 0; i < terms.size() && i < 3; ++i) {
    text += (i == 0 ? "" : ", ") + text::quoted(terms[i]);
  }
  return text + (terms.size() > 3 ? " and " + std::to_string(terms.size() - 3) + " more" : "");
}

// What `set` names that is not there.
void warn_of_absent(const LayerSet& set, std::int64_t total, const std::string& source,
                    std::vector<std::string>& out) {
  if (set.empty()) return;
  const auto there_are = ", but there are " + std::to_string(total);
  if (const auto named = set.largest_named(); named > total) {
    out.push_back(source + ": names layer " + std::to_string(named) + there_are);
  } else if (const auto terms = set.terms_without_layer(total); !terms.empty()) {
    out.push_back(source + ": " + some(terms) + (terms.size() == 1 ? " names" : " name") +
                  " no layer: there are " + std::to_string(total));
  } else if (total <= kMostListed && set.members(total).empty()) {
    out.push_back(source + ": leaves no layer of the " + std::to_string(total));
  }
}

// MLPs at level activation that are not recomputed.
void warn_of_level(const Policy& policy, const Sources& sources, std::vector<std::string>& out) {
  const auto& config = policy.config();
  if (config.where.count("mlp_activation_layers") == 0) return;
  const auto total = policy.total(Module::kMlp).value_or(config.mlp_activation.largest_named());
  if (total > kMostListed) return;
  std::vector<std::int64_t> vain;
  for (const auto n : config.mlp_activation.members(total)) {
    if (!config.layers[kMlpIndex].contains(n, total)) vain.push_back(n);
  }
  if (vain.empty()) return;
  const auto& who = sources.layers[kMlpIndex];
  out.push_back(sources.level + ": does nothing in layer" + (vain.size() == 1 ? " " : "s ") +
                text::printable(layer_expression(vain)) + ", whose MLP is not recomputed" +
                (who.empty() ? "" : " (" + who + ")"));
}

// More layers in `full` than there are to take.
void warn_of_full(const Config& config, const Model& model, std::vector<std::string>& out) {
  const auto there = model.stage_num_layers > 0 ? model.stage_num_layers : model.num_layers;
  if (there > 0 && *config.num_layers > there) {
    out.push_back(place_of(config, "recompute_num_layers") + ": is " +
                  std::to_string(*config.num_layers) + ", but there are " + std::to_string(there) +
                  (there == model.stage_num_layers ? " layers in the stage" : " layers"));
  }
}

}  // namespace

std::string place_of(const Config& config, const std::string& key) {
  const auto at = config.where.find(key);
  return at == config.where.end() ? key : at->second + ": " + key;
}

Sources::Sources(const Config& config) {
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    for (const char* suffix : {"_num_layers", "_layers"}) {
      const auto key = std::string("recompute_") + kModules[m].name + suffix;
      if (config.where.count(key) > 0) layers[m] = place_of(config, key);
    }
  }
  level = place_of(config, config.where.count("mlp_recompute_level") > 0 ? "mlp_recompute_level"
                                                                         : "mlp_activation_layers");
}

bool has_module(const LayerInfo& layer, Module module) {
  const auto kind = kModules[static_cast<std::size_t>(module)].layers;
  return kind == RECOUP_EVERY_LAYER || (kind == RECOUP_MOE_LAYER) == layer.is_moe;
}

std::string refusal(const Policy& policy, const Model& model, const Sources& sources) {
  const auto& config = policy.config();
  if (auto why = not_offered(config, model); !why.empty()) return why;
  if (auto why = not_recomputable(config, model); !why.empty()) return why;
  if (auto why = uncountable(policy, sources); !why.empty()) return why;
  if (!config.mlp_activation.empty() && !model.mlp_activation) {
    return sources.level +
           ": this host cannot recompute the activation alone; allowed is full (its author must "
           "set RECOUP_MLP_ACTIVATION in recoup_host_v1.modules, HostOptions::modules)";
  }
  return without_effect(config, sources);
}

std::vector<std::string> warnings(const Policy& policy, const Model& model,
                                  const Sources& sources) {
  const auto& config = policy.config();
  std::vector<std::string> out;
  if (config.granularity == Granularity::kFull) warn_of_full(config, model, out);
  if (config.granularity != Granularity::kSelective) return out;
  const auto total = policy.total(Module::kMlp);
  if (std::none_of(config.modules.begin(), config.modules.end(),
                   [](bool listed) { return listed; })) {
    out.push_back(place_of(config, "recompute_modules") +
                  ": the list is empty: nothing is recomputed");
  }
  if (config.has(Module::kMlp) && model.num_mlps == std::int64_t{0}) {
    out.push_back(place_of(config, "recompute_modules") +
                  ": every layer of this model is an MoE layer: no MLP is recomputed as \"mlp\"");
  }
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    const auto all = policy.total(static_cast<Module>(m));
    if (config.modules[m] && all && *all > 0) {
      warn_of_absent(config.layers[m], *all, sources.layers[m], out);
    }
  }
  if (config.where.count("mlp_activation_layers") > 0 && total && *total > 0) {
    warn_of_absent(config.mlp_activation, *total, sources.level, out);
  }
  warn_of_level(policy, sources, out);
  return out;
}

}  // namespace recoup
