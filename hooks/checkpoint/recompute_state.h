// What a forward depends on besides its inputs and parameters, and what its recompute must find
// again: random number generators, autocast, current devices and streams, grad mode.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <vector>

#include "rng.h"

namespace recoup {

// Autocast's weight cache off for a scope: whether a weight's cast is found in the cache depends on
// what ran before, so with it the recompute could save other tensors than the forward did (pytorch
// issue 141896), and the cache would hold the casts until autocast ends.
class NoAutocastCache {
 public:
  NoAutocastCache() : before_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~NoAutocastCache() { at::autocast::set_autocast_cache_enabled(before_); }
  NoAutocastCache(const NoAutocastCache&) = delete;
  NoAutocastCache& operator=(const NoAutocastCache&) = delete;

 private:
  bool before_;
};

// The generators that a forward may draw from: the CPU's and those of the inputs' devices.
class RngWatch {
 public:
  // Before the forward. Large (2.5 KB for the CPU's generator) and meant for the stack: few
  // forwards draw random numbers, and only those have anything to keep.
  RngWatch(const std::vector<at::Tensor>& inputs, bool preserve_rng);

  // After the forward: the earlier states of the generators that it drew from.
  std::vector<RngState> drawn() const;

 private:
  c10::SmallVector<RngState, 2> before_;
};

class RecomputeState {
 public:
  // Before the forward.
  explicit RecomputeState(const std::vector<at::Tensor>& inputs);

  // After the forward.
  void set_rng(std::vector<RngState> drawn) { rng_ = std::move(drawn); }

  // The stream of each device that the forward ran on; none for the CPU.
  const std::vector<c10::Stream>& streams() const { return streams_; }

 private:
  friend class ScopedRecomputeState;
  struct Autocast {
    at::DeviceType device;
    bool enabled;
    at::ScalarType dtype;
  };
  std::vector<RngState> rng_;
  c10::SmallVector<Autocast, 2> autocast_;
  std::vector<c10::Stream> streams_;
};

// The forward's state for the scope of its recompute.
class ScopedRecomputeState {
 public:
  explicit ScopedRecomputeState(const RecomputeState& state);
  ~ScopedRecomputeState();
  ScopedRecomputeState(const ScopedRecomputeState&) = delete;
  ScopedRecomputeState& operator=(const ScopedRecomputeState&) = delete;

 private:
  at::AutoGradMode grad_mode_{true};
  NoAutocastCache no_cache_;
  c10::SmallVector<RecomputeState::Autocast, 2> autocast_before_;
  std::vector<std::unique_ptr<c10::StreamGuard>> streams_;
  std::vector<std::unique_ptr<ScopedRng>> rng_;
};

}  // namespace recoup
