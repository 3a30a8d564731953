// What configures recoup from outside the host: every environment variable, the CMake constant, and
// which of them wins. Nothing else in the libraries reads the environment (the constant mode's
// value comes through Policy::find_override()). plugin/README.md has the table of variables.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "recoup/plugin.h"
#include "recoup/policy/policy.h"
#include "recoup/result.h"

namespace recoup {

// The variables that the libraries read.
inline constexpr char kConfigVariable[] = "RECOUP_CONFIG";
inline constexpr char kProfileVariable[] = "RECOUP_PROFILE";
inline constexpr char kTraceVariable[] = "RECOUP_TRACE";
inline constexpr char kCheckVariable[] = "RECOUP_CHECK";

// What RECOUP_CHECK may be; see recoup::Check.
inline constexpr char kCheckValues[] = "values";
inline constexpr char kCheckCopy[] = "copy";
inline constexpr char kBudgetVariable[] = "RECOUP_MEMORY_BUDGET";

struct Settings {
  // The options: of the host (a path, or text), else of RECOUP_CONFIG, else none.
  std::string config_path;
  std::optional<std::string> config_yaml;
  std::optional<Override> override;  // RECOUP_RECOMPUTE_MLP_NUM_LAYERS, variable before constant
  std::string profile_path;          // RECOUP_PROFILE
  std::string trace_path;            // RECOUP_TRACE
  std::string check;                 // RECOUP_CHECK: empty, kCheckValues or kCheckCopy
  std::optional<MemoryBudget> memory_budget;  // RECOUP_MEMORY_BUDGET

  bool expandable_segments = false;  // PyTorch's: its allocator leaves less unused

  // An error where the host gives both a path and text, or a variable's value is none.
  static Result<Settings> read(const recoup_host_v1& host);

  // Puts RECOUP_MEMORY_BUDGET in the place of the file's key. A sentence where the two contradict
  // each other, else empty.
  std::string put_budget_into(Config& config) const;

  // Sentences for the log: what these settings do that must not go unnoticed. `engine`: whether the
  // library has one to measure with.
  std::vector<std::string> notices(bool engine) const;

  // The names of what is set outside the host, such as "environment variable RECOUP_CONFIG". Not
  // RECOUP_CHECK, which asks for no recompute.
  static std::vector<std::string> outside();
};

}  // namespace recoup
