#include "hosts.h"

namespace recoup::cli {

const HostRow* find_host(const std::string& name) {
  for (const auto& host : kHosts) {
    if (name == host.name) return &host;
  }
  return nullptr;
}

std::vector<std::string> host_names() {
  std::vector<std::string> names;
  for (const auto& host : kHosts) names.emplace_back(host.name);
  return names;
}

Model model_of(const HostRow& host, std::int64_t num_layers) {
  Model model;
  model.num_layers = model.stage_num_layers = num_layers;
  model.modules.emplace();
  for (const auto& module : kModules) {
    if (host.has(module.bit)) model.modules->push_back(module.name);
  }
  model.mlp_activation = host.has(RECOUP_MLP_ACTIVATION);
  model.full = (host.capabilities & RECOUP_CAN_FULL) != 0;
  model.distribute = (host.capabilities & RECOUP_CAN_DISTRIBUTE) != 0;
  // A host that is not named may be one that keeps a budget.
  model.budget = &host == &kHosts[0] || (host.capabilities & RECOUP_CAN_BUDGET) != 0;
  model.stages = (host.capabilities & RECOUP_CAN_STAGES) != 0;
  return model;
}

}  // namespace recoup::cli
