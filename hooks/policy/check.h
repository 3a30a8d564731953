// What a configuration asks of a host and a model that they cannot give, and what it asks in vain.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "recoup/policy/policy.h"

namespace recoup {

// Who said which layers, for whoever is to blame for them: the place and key, or the constant
// mode's setting; empty where nobody did.
struct Sources {
  explicit Sources(const Config& config);
  std::array<std::string, kModuleCount> layers;
  std::string level;  // of the MLP
};

// Whether a layer has a module at all.
bool has_module(const LayerInfo& layer, Module module);

// Why `policy` cannot be for this host and model, as a sentence, or empty.
std::string refusal(const Policy& policy, const Model& model, const Sources& sources);

// What is allowed, and does less than it seems to.
std::vector<std::string> warnings(const Policy& policy, const Model& model, const Sources& sources);

// More layers than this are not looked at one by one, for a summary or a warning.
inline constexpr std::int64_t kMostListed = 10'000;

}  // namespace recoup
