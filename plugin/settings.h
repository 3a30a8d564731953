// What configures recoup from outside the host: every environment variable, the CMake constant, and
// which of them wins. Nothing else in the libraries reads the environment. plugin/README.md has the
// table of variables.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "recoup/plugin.h"
#include "recoup/policy/policy.h"
#include "recoup/result.h"

namespace recoup {

struct Settings {
  // The options: of the host (a path, or text), else of RECOUP_CONFIG, else none.
  std::string config_path;
  std::optional<std::string> config_yaml;
  std::optional<Override> override;  // RECOUP_RECOMPUTE_MLP_NUM_LAYERS, variable before constant
  std::string profile_path;          // RECOUP_PROFILE
  std::string trace_path;            // RECOUP_TRACE

  // An error where the host gives both a path and text, or a variable's value is none.
  static Result<Settings> read(const recoup_host_v1& host);

  // The names of what is set outside the host, such as "environment variable RECOUP_CONFIG".
  static std::vector<std::string> outside();
};

}  // namespace recoup
