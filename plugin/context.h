// One started plugin: what init() made for one model, and what every function of the contract works
// on.
#pragma once

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "controller.h"
#include "engine_seam.h"
#include "handles.h"
#include "layers.h"
#include "recoup/plugin.h"
#include "recoup/policy/construction.h"
#include "recoup/policy/policy.h"

namespace recoup {

struct Context {
  Policy policy;
  std::uint32_t host_modules;
  bool logs;  // rank 0
  recoup_log_fn log;
  void* log_user;
  std::shared_ptr<Recorder> recorder{};      // null: nobody asked for a profile or a trace
  std::string check{};                       // RECOUP_CHECK
  std::shared_ptr<Controller> controller{};  // null: no memory budget is kept
  std::shared_ptr<void> measure{};           // kEngine.measure(controller)
  // Regions waiting for their backward outlive the plugin.
  std::shared_ptr<Layers> layers = std::make_shared<Layers>();

  // What only the constructed layers show.
  std::unique_ptr<Construction> construction = std::make_unique<Construction>(policy);

  bool profiles() const { return recorder != nullptr && recorder->profiles(); }

  void say(recoup_log_level level, const std::string& line) const {
    if (logs) write(level, line);
  }

  void write(recoup_log_level level, const std::string& line) const {
    if (log != nullptr) {
      log(log_user, level, line.c_str());
    } else {
      std::fprintf(stderr, "%s%s\n", level == RECOUP_LOG_WARNING ? "WARNING: " : "", line.c_str());
    }
  }

  void say(const std::vector<LogLine>& lines) const {
    for (const auto& line : lines) {
      say(line.warning ? RECOUP_LOG_WARNING : RECOUP_LOG_INFO, "recoup: " + line.text);
    }
  }
};

// Never destroyed: handles may be checked while the process ends.
inline Handles<Context>& contexts() {
  static auto& contexts = *new Handles<Context>();
  return contexts;
}
using PinnedContext = Handles<Context>::Pin;

// Writes the sentence, cut to what fits, and returns the status.
inline recoup_status fail(recoup_status status, const std::string& text, char* error,
                          std::size_t size) {
  if (error != nullptr && size > 0) {
    const auto length = text.size() < size - 1 ? text.size() : size - 1;
    std::memcpy(error, text.data(), length);
    error[length] = '\0';
  }
  return status;
}

}  // namespace recoup
