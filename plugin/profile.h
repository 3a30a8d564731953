// RECOUP_PROFILE=FILE: nothing is recomputed; FILE gets, for each part of each layer that the host
// can recompute, the bytes it saves and the milliseconds a recompute would take, for `recoup plan`.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "output.h"
#include "recoup/checkpoint/events.h"

namespace c10 {
struct StorageImpl;
}

namespace recoup {

class Profile final : public EventListener {
 public:
  explicit Profile(Output output) : output_(std::move(output)) {}

  // Writes what has been measured. Why it could not, or empty.
  std::string write();

  void forward_begins(const RegionInfo& region,
                      const std::vector<at::Tensor>& inputs) noexcept override;
  void saved(const RegionInfo& region, const at::Tensor& tensor) noexcept override;
  void forward_ends(const RegionInfo& region) noexcept override;

 private:
  using Clock = std::chrono::steady_clock;
  // A forward under way.
  struct Running {
    Clock::time_point start;
    double last_saved_ms = 0;
    std::set<const c10::StorageImpl*> inputs, seen;
    std::int64_t input_bytes = 0, saved_bytes = 0;
  };
  // A part of a layer.
  struct Measured {
    std::int64_t input_bytes = 0;  // what a checkpoint keeps
    std::int64_t extra_bytes = 0;  // of these, what the forward itself would not have saved
    std::int64_t saved_bytes = 0;  // what it would drop: saved, but no input and no parameter
    std::vector<double> forward_ms;
    std::vector<double> recompute_ms;  // from the start to the last tensor saved
  };
  using Key = std::pair<std::int64_t, std::string>;  // layer number and part
  std::string write_locked();

  const Output output_;
  std::mutex mutex_;
  std::map<std::uint64_t, Running> running_;
  std::map<Key, Measured> measured_;
  std::vector<Key> order_;  // as they first ran
  std::uint64_t runs_ = 0;
  Doubling doubling_;
};

}  // namespace recoup
