// Where the two libraries differ: librecoup.so links engine_libtorch.cc, librecoup_policy.so
// engine_none.cc. contract.cc knows this header only, and no LibTorch.
#pragma once

#include <memory>
#include <string>

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
  // What is not in the files although it happened, or empty.
  virtual std::string remark() = 0;
};

struct Engine {
  const char* torch_version;                          // null: needs none
  decltype(recoup_plugin_v1::checkpoint) checkpoint;  // null: there is none
  // Opens the files that the settings name; null where they name none. Null function: this library
  // has nothing to measure.
  Result<std::shared_ptr<Recorder>> (*record)(const Settings& settings, int rank);
};
extern const Engine kEngine;

}  // namespace recoup
