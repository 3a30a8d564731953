#include "layers.h"

#include <algorithm>

namespace recoup {
namespace {

// "3", "1-4", "1-4, 7"
std::string ranges(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    auto end = i;
    while (end + 1 < numbers.size() && numbers[end + 1] == numbers[end] + 1) ++end;
    if (!text.empty()) text += ", ";
    text += std::to_string(numbers[i]);
    if (end > i) text += "-" + std::to_string(numbers[end]);
    i = end + 1;
  }
  return text;
}

}  // namespace

void Decision::write_to(recoup_layer_v1& layer) const {
  // Fields of version 1.0, which every layer has; one that is appended goes through RECOUP_SET.
  layer.recompute_mlp = recompute_mlp;
  layer.recompute_modules = recompute_modules;
  layer.full_group = full_group;
  layer.mlp_activation_only = mlp_activation_only;
  layer.distribute_saved_activations = distribute_saved_activations;
  layer.profile = profile;
}

void* Layers::add(std::int64_t number, const Decision& decision, std::string* warning) {
  const std::lock_guard<std::mutex> guard(mutex_);
  decisions_.emplace_back(number, decision);
  const auto [entry, fresh] = told_.try_emplace(number);
  if (!fresh && !said_twice_) {
    said_twice_ = true;
    *warning = "recoup: layer number " + std::to_string(number) +
               " was given twice; where these are two layers of one model, each needs its own "
               "number, counted from 1 over all pipeline stages";
  }
  entry->second.modules |=
      decision.recompute_modules | (decision.full_group > 0 ? kWhole : std::uint64_t{0});
  return reinterpret_cast<void*>(decisions_.size());
}

std::optional<Decision> Layers::decide(const void* handle, std::int64_t* number) const {
  const auto index = reinterpret_cast<std::uintptr_t>(handle);
  const std::lock_guard<std::mutex> guard(mutex_);
  if (index == 0 || index > decisions_.size()) return std::nullopt;
  const auto& [layer, decision] = decisions_[index - 1];
  if (number != nullptr) *number = layer;
  return decision;
}

std::string Layers::forward_begins(std::int64_t number, std::uint64_t modules) {
  if (!watching_.load(std::memory_order_relaxed)) return {};
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto layer = told_.find(number);
  if (layer == told_.end()) {
    watching_ = false;  // a host of version 1.0: which layer ran is not known
    return {};
  }
  // A region that is no module is a whole layer's, or unknown: it counts for all.
  auto& told = layer->second;
  const auto now = modules != 0 ? modules : told.modules;
  if ((told.ran & now) != 0 && recomputed_.load(std::memory_order_relaxed)) return missing();
  told.ran |= now;
  return {};
}

std::string Layers::never_ran() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return watching_ ? missing() : std::string();
}

// Called once: the sentence, or empty where all have run.
std::string Layers::missing() {
  watching_ = false;
  std::map<std::string, std::vector<std::int64_t>> layers;  // by what is missing
  for (const auto& [number, told] : told_) {
    const auto left = told.modules & ~told.ran;
    std::string what = (left & kWhole) != 0 ? "whole layers" : "";
#define RECOUP_NAME_MISSING(c_name, cc_name, name, bit, kind, meaning) \
  if ((left & RECOUP_##c_name) != 0) what += (what.empty() ? "" : ", ") + std::string(name);
    RECOUP_MODULES(RECOUP_NAME_MISSING)
#undef RECOUP_NAME_MISSING
    if (!what.empty()) layers[what].push_back(number);
  }
  std::string text;
  for (const auto& [what, numbers] : layers) {
    text += (text.empty() ? "recoup: " : "; ") +
            std::string(numbers.size() == 1 ? "layer " : "layers ") + ranges(numbers) + " (" +
            what + ")";
  }
  if (text.empty()) return text;
  return text +
         ": told to recompute, but no checkpoint of that ran in a whole step, so nothing is saved "
         "there; the host's forward must go through the layer's own recoup::Layer";
}

}  // namespace recoup
