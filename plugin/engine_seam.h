// Where the two libraries differ: librecoup.so links engine_libtorch.cc, librecoup_policy.so
// engine_none.cc. contract.cc knows this header only, and no LibTorch.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "recoup/budget/record.h"
#include "recoup/plugin.h"
#include "recoup/result.h"
#include "settings.h"

namespace recoup {

// What one started plugin measures: profile and trace.
class Recorder {
 public:
  virtual ~Recorder() = default;
  // Whether nothing is recomputed and every region measured in place of it.
  virtual bool profiles() const = 0;
  // Writes what has been gathered. Why it could not, or empty.
  virtual std::string write() = 0;
  // For the trace, if there is one: the bytes that are allocated, of which `budget` should not be
  // exceeded, and a sentence about what was decided, with the peak that it promises or 0.
  virtual void memory(std::int64_t bytes, std::int64_t budget) = 0;
  virtual void event(const std::string& text, std::int64_t predicted) = 0;
  // What is not in the files although it happened, or empty.
  virtual std::string remark() = 0;
};

class Controller;

// The memory of this process's accelerator, by LibTorch's allocator.
struct DeviceMemory {
  std::function<bool(bool restart, budget::Memory*)> memory;
  std::function<std::int64_t()> device_bytes;  // all that it has
  // How many requested bytes a budget of device bytes is, as the allocator stands now.
  std::function<std::int64_t(std::int64_t budget)> requested;
};

struct Engine {
  const char* torch_version;                          // null: needs none
  decltype(recoup_plugin_v1::checkpoint) checkpoint;  // null: there is none
  // Opens the files that the settings name; null where they name none. Null function: this library
  // has nothing to measure.
  Result<std::shared_ptr<Recorder>> (*record)(const Settings& settings, int rank);
  // What hears of the regions of measured steps, for the controller. Null function: there is no
  // engine to measure with.
  std::shared_ptr<void> (*measure)(const std::shared_ptr<Controller>& controller);
  // Whether a forward that begins in this thread records gradients.
  bool (*training)();
  // Nothing where there is no accelerator, or its allocator cannot be asked.
  std::optional<DeviceMemory> (*device_memory)(const Settings& settings);
};
extern const Engine kEngine;

}  // namespace recoup
