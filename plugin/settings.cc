#include "settings.h"

#include <cstdlib>

#include "growth.h"

namespace recoup {
namespace {

// Unset and empty are the same.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

std::string of_budget(const std::string& text) {
  return std::string("environment variable ") + kBudgetVariable + ": " + text;
}

}  // namespace

Result<Settings> Settings::read(const recoup_host_v1& host) {
  Settings settings;
  auto override = Policy::find_override();
  if (!override.ok()) return override.error();
  settings.override = override.value();
  if (host.config_path != nullptr) settings.config_path = host.config_path;
  if (const char* yaml = RECOUP_GET(&host, config_yaml)) settings.config_yaml = yaml;
  if (!settings.config_path.empty() && settings.config_yaml) {
    return Error{settings.config_path +
                 ": given beside options of the host's own; allowed is one of the two"};
  }
  if (settings.config_path.empty() && !settings.config_yaml) {
    settings.config_path = variable(kConfigVariable);
  }
  settings.profile_path = variable(kProfileVariable);
  settings.trace_path = variable(kTraceVariable);
  settings.check = variable(kCheckVariable);
  if (!settings.check.empty() && settings.check != kCheckValues && settings.check != kCheckCopy) {
    return Error{std::string(kCheckVariable) + "=" + settings.check +
                 ": is no check; allowed are " + kCheckValues + " and " + kCheckCopy};
  }
  for (const char* name : {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}) {
    settings.expandable_segments =
        settings.expandable_segments ||
        variable(name).find("expandable_segments:True") != std::string::npos;
  }
  if (const auto text = variable(kBudgetVariable); !text.empty()) {
    const auto budget = MemoryBudget::parse(text);
    if (!budget.ok()) return Error{of_budget(budget.error().text)};
    settings.memory_budget = budget.value();
  }
  return settings;
}

std::string Settings::put_budget_into(Config& config) const {
  if (!memory_budget) return {};
  if (config.granularity == Granularity::kFull) {
    return of_budget("conflicts with " + place_of(config, "recompute_granularity") +
                     ": full, which recomputes whole layers; unset one of the two");
  }
  for (const char* key : {"mlp_recompute_level", "mlp_activation_layers"}) {
    if (config.where.count(key) == 0) continue;
    return of_budget("conflicts with " + place_of(config, key) +
                     ", since levels are the budget's choice; unset one of the two");
  }
  if (config.granularity == Granularity::kNone && !override) {
    return of_budget(
        "nothing may be recomputed; the options must have recompute_granularity: selective");
  }
  if (config.memory_budget) {
    config.notices.push_back(of_budget(memory_budget->text() + " OVERRIDES " +
                                       place_of(config, "recompute_memory_budget")));
  }
  config.memory_budget = memory_budget;
  config.where["recompute_memory_budget"] = std::string("environment variable ") + kBudgetVariable;
  return {};
}

std::vector<std::string> Settings::notices(bool engine) const {
  std::vector<std::string> notices;
  if (!engine) {
    for (const auto& [name, value] :
         {std::pair(kProfileVariable, profile_path), std::pair(kTraceVariable, trace_path),
          std::pair(kCheckVariable, check)}) {
      if (value.empty()) continue;
      notices.push_back(std::string(name) +
                        " has no effect: librecoup_policy.so has no engine to measure with; load "
                        "librecoup.so in a LibTorch host");
    }
  } else if (!profile_path.empty()) {
    notices.push_back(std::string(kProfileVariable) + " is set: this run measures into " +
                      profile_path +
                      " and recomputes NOTHING, whatever the options say; unset it to train");
  }
  if (engine && !check.empty()) {
    notices.push_back(std::string(kCheckVariable) + "=" + check +
                      (profile_path.empty()
                           ? " is set: the values of every recompute are compared with the "
                             "forward's, which is slow; unset it to train"
                           : std::string(" has no effect: ") + kProfileVariable +
                                 " is set, and nothing is recomputed"));
  }
  return notices;
}

std::vector<std::string> Settings::outside() {
  std::vector<std::string> names;
  for (const char* name : {kConfigVariable, kProfileVariable, kTraceVariable, kBudgetVariable}) {
    if (!variable(name).empty()) names.push_back(std::string("environment variable ") + name);
  }
  // A value that is none configures too: init() will say what is wrong with it.
  const auto override = Policy::find_override();
  if (!override.ok()) {
    names.push_back(override.error().text.substr(0, override.error().text.find(':')));
  } else if (override.value()) {
    names.push_back(override.value()->source);
  }
  return names;
}

}  // namespace recoup
