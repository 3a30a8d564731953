// What the plugin can tell of a run, for people and for the planner (hooks/planner):
//
//   RECOUP_PROFILE=FILE   nothing is recomputed; FILE gets, for each part of each layer that the
//   host
//                         can recompute, the bytes it saves and the milliseconds a recompute would
//                         take
//   RECOUP_TRACE=FILE     FILE gets each forward and recompute as a span, for ui.perfetto.dev
//
// A rank other than 0 writes to FILE.RANK. Files are written when the plugin is finalized.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine_seam.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {

class Observer : public Recorder, public std::enable_shared_from_this<Observer> {
 public:
  // Null where neither path is set.
  static std::shared_ptr<Observer> open(const Settings& settings, int rank);

  bool profiles() const override { return !profile_path_.empty(); }

  // Runs forward(inputs) as it is, and records what a checkpoint of it would save and cost.
  Tensors measure(const std::string& region, const Forward& forward, const Tensors& inputs);

  // `forward`, each run of it recorded as a span: the first as a forward, the others as recomputes.
  Forward traced(const std::string& region, Forward forward);

  std::string write() override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Measured {
    std::int64_t input_bytes = 0;  // what a checkpoint keeps
    std::int64_t extra_bytes = 0;  // of these, what the forward itself would not have saved
    std::int64_t saved_bytes = 0;  // what it would drop: saved, but no input and no parameter
    std::vector<double> forward_ms;
    std::vector<double> recompute_ms;  // from the start to the last tensor saved
  };
  struct Span {
    std::string region;
    bool recompute;
    double start_us, length_us;
    int thread;
  };

  std::string profile_path_, trace_path_;
  const Clock::time_point epoch_ = Clock::now();
  int rank_ = 0;
  std::mutex mutex_;
  std::map<std::string, Measured> measured_;
  std::vector<std::string> order_;  // of the regions, as they first ran
  std::vector<Span> spans_;
};

}  // namespace recoup
