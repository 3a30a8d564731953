#include "offered.h"

#include "growth.h"

namespace recoup {
namespace {

// What a host that was compiled with version 1.0 cannot have said.
bool says_capabilities(const recoup_host_v1& host) {
  return RECOUP_HAS(recoup_host_v1, &host, capabilities);
}

}  // namespace

Model model_of(const recoup_host_v1& host) {
  Model model;
  model.num_layers = host.num_layers;
  model.stage_num_layers = host.stage_num_layers;
  model.modules.emplace();
  for (const auto& module : kModules) {
    if ((host.modules & module.bit) != 0) model.modules->push_back(module.name);
  }
  model.mlp_activation = (host.modules & RECOUP_MLP_ACTIVATION) != 0;
  if (says_capabilities(host)) {
    model.full = (host.capabilities & RECOUP_CAN_FULL) != 0;
    model.distribute = (host.capabilities & RECOUP_CAN_DISTRIBUTE) != 0;
    model.stages = (host.capabilities & RECOUP_CAN_STAGES) != 0;
    model.budget = (host.capabilities & RECOUP_CAN_BUDGET) != 0;
    const auto num_mlps = RECOUP_GET(&host, num_mlps);
    if ((host.capabilities & RECOUP_CAN_COUNT_MLPS) != 0 && num_mlps > 0) model.num_mlps = num_mlps;
  }
  return model;
}

std::string unconfirmed(const recoup_host_v1& host, const Config& config) {
  if (says_capabilities(host)) return {};
  std::string what;
  const auto add = [&](bool asked, const char* option) {
    if (asked) what += (what.empty() ? "" : ", ") + std::string(option);
  };
  add(config.granularity == Granularity::kFull, "recompute_granularity: full");
  add(config.distribute_saved_activations, "distribute_saved_activations");
  add(config.scope == LayerScope::kStage, "recompute_layer_scope: stage");
  if (what.empty()) return what;
  return "recoup: " + what +
         ": this host was compiled with contract 1.0, which cannot say whether it does that; "
         "nothing is recomputed where it does not";
}

}  // namespace recoup
