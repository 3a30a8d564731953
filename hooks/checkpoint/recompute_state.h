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

// Autocast's weight cache for the scope of a recompute. The forward uses the cache as a plain run
// does: a weight used twice is cast once, and its gradients are summed in the low precision. The
// recompute must neither find casts of another time nor leave its own behind. Outside of any
// autocast the cache is empty: the recompute has it to itself, as the forward's autocast had, and
// it is empty again at the end. Within one it is off: each use casts anew, and what is saved is the
// same.
class ScopedAutocastCache {
 public:
  // `used`: whether autocast is on in the recompute; where not, nothing needs to be done.
  explicit ScopedAutocastCache(bool used);
  ~ScopedAutocastCache();
  ScopedAutocastCache(const ScopedAutocastCache&) = delete;
  ScopedAutocastCache& operator=(const ScopedAutocastCache&) = delete;

 private:
  const bool used_;
  bool before_ = false;
};

// The generators that a forward may draw from: the CPU's, and those of the inputs' devices and of
// every other device that is in use in this process.
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

  // Whether the forward ran under autocast.
  bool autocast() const;

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
  ScopedAutocastCache cache_;
  c10::SmallVector<RecomputeState::Autocast, 2> autocast_before_;
  std::vector<std::unique_ptr<c10::StreamGuard>> streams_;
  std::vector<std::unique_ptr<ScopedRng>> rng_;
};

}  // namespace recoup
