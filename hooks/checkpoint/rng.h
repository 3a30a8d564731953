// Saving and restoring a random number generator, whatever its device.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <optional>

#include "cuda_rng.h"

namespace recoup {

// The state of one generator at one time.
class RngState {
 public:
  explicit RngState(const at::Generator& generator);

  // Whether the generator's state differs from this one: random numbers were drawn since.
  bool drawn_since() const;

  // Sets the generator to this state.
  void restore() const;

  const at::Generator& generator() const { return generator_; }

 private:
  // The CPU's state without the 5 KB tensor that get_state() would make of it.
  struct Cpu {
    explicit Cpu(at::CPUGeneratorImpl& impl);
    bool operator==(const Cpu& other) const;
    at::mt19937 engine;
    std::optional<float> next_float;
    std::optional<double> next_double;
  };
  at::Generator generator_;
  std::optional<Cpu> cpu_;       // for the CPU's generator,
  at::Tensor bytes_;             // for another,
  cuda_rng::Captured captured_;  // for one whose stream is being captured into a graph
};

// Sets a generator to an earlier state and, at the end of the scope, back. Scopes of one generator
// exclude each other across threads, so that two recomputes never draw from each other's numbers.
class ScopedRng {
 public:
  explicit ScopedRng(const RngState& state);
  ~ScopedRng();
  ScopedRng(const ScopedRng&) = delete;
  ScopedRng& operator=(const ScopedRng&) = delete;

 private:
  std::unique_lock<std::recursive_mutex> exclusive_;
  RngState before_;
  at::Generator captured_before_;  // the very state object that the graph under capture knows
};

}  // namespace recoup
