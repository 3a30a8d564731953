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
  return settings;
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
  for (const char* name : {kConfigVariable, kProfileVariable, kTraceVariable}) {
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
