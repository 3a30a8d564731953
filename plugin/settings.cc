#include "settings.h"

#include <cstdlib>

#include "growth.h"

namespace recoup {
namespace {

// The variables that the libraries read.
constexpr char kConfig[] = "RECOUP_CONFIG";
constexpr char kProfile[] = "RECOUP_PROFILE";
constexpr char kTrace[] = "RECOUP_TRACE";

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
    settings.config_path = variable(kConfig);
  }
  settings.profile_path = variable(kProfile);
  settings.trace_path = variable(kTrace);
  return settings;
}

std::vector<std::string> Settings::outside() {
  std::vector<std::string> names;
  for (const char* name : {kConfig, kProfile, kTrace}) {
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
