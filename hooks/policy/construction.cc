#include "recoup/policy/construction.h"

#include <algorithm>

#include "check.h"

namespace recoup {

Construction::Construction(const Policy& policy)
    : policy_(policy),
      expected_(policy.model().stage_num_layers > 0 ? policy.model().stage_num_layers
                                                    : policy.model().num_layers) {}

std::vector<LogLine> Construction::add(const LayerInfo& layer) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return {};
    if (layers_.size() < static_cast<std::size_t>(kMostListed)) layers_.push_back(layer);
    if (static_cast<std::int64_t>(layers_.size()) != expected_) return {};
  }
  return finish();
}

std::vector<LogLine> Construction::finish() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (finished_ || layers_.empty()) return {};
  finished_ = true;
  return lines();
}

std::vector<LogLine> Construction::lines() const {
  std::vector<LogLine> out;
  const auto& config = policy_.config();
  if (config.granularity != Granularity::kSelective) return out;
  const auto count = std::to_string(layers_.size());
  const bool whole = static_cast<std::int64_t>(layers_.size()) == policy_.model().num_layers;
  const auto modules = place_of(config, "recompute_modules");
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    if (!config.modules[m] || config.layers[m].empty()) continue;
    const auto module = static_cast<Module>(m);
    const auto quoted = ": \"" + std::string(kModules[m].name) + "\": ";
    const auto any = [&](auto&& of) { return std::any_of(layers_.begin(), layers_.end(), of); };
    if (!any([&](const auto& layer) { return has_module(layer, module); })) {
      out.push_back(
          {true, modules + quoted + "none of the " + count + " layers constructed here has " +
                     (kModules[m].layers == RECOUP_MOE_LAYER ? "it: none is an MoE layer"
                                                             : "it: all are MoE layers")});
    } else if (whole && !any([&](const auto& l) { return policy_.recomputes(module, l); })) {
      out.push_back({true, modules + quoted + "none of the " + count + " layers recomputes it"});
    }
  }
  const bool moe =
      std::any_of(layers_.begin(), layers_.end(), [](const auto& l) { return l.is_moe; });
  if (moe) out.push_back({false, count + " layers constructed: " + policy_.summary(layers_)});
  return out;
}

}  // namespace recoup
