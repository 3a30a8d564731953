// Activation checkpointing for LibTorch C++: the counterpart of Python's non-reentrant
// torch.utils.checkpoint.
//
//   auto y = recoup::checkpoint([&](const at::Tensor& x) { return mlp->forward(x); }, x);
//
// Between forward and backward only the inputs are kept. The first tensor that backward needs
// runs `forward` once more, up to the last tensor that is needed and no further: the GEMM that ends
// an MLP is not repeated. Results and gradients are bit-equal to an uncheckpointed run.
//
// What is kept besides the inputs: where forward drew random numbers, the state of the generators
// it drew from (host memory: 2.5 KB for the CPU's, 16 bytes for a GPU's), and about 150 bytes of
// host memory for each tensor that would have been saved.
//
// What `forward` must do: be callable again until backward is done (capture modules by shared_ptr),
// compute the same thing again, and not modify its inputs in place. The recompute sees the
// forward's random number generators, autocast state, current streams and grad mode. With several
// threads that draw from one default generator at the same time no run is reproducible,
// checkpointed or not.
//
// Errors, all c10::Error or recoup::RecomputeError, thrown from backward: an input, parameter or
// saved tensor was modified in place since the forward; the recompute saved other tensors than the
// forward. An exception of `forward` itself passes through unchanged. After any of them the next
// forward and backward work.
//
// Threads: any number of forwards and backwards at the same time, also of one retained graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "recoup/checkpoint/events.h"

namespace recoup {

using Tensors = std::vector<at::Tensor>;
using Forward = std::function<Tensors(const Tensors&)>;

// How a recompute ends and waits where `forward` is not plain C++. For a forward in Python, say: a
// StopRecompute must cross the interpreter as a Python exception, and no thread may wait for
// another's recompute while it holds the interpreter's lock.
class Runtime {
 public:
  virtual ~Runtime() = default;
  // Throws what stopped_by() knows again.
  [[noreturn]] virtual void stop(const void* region) const;
  // Called in a catch (...): whether the exception is stop(region)'s.
  virtual bool stopped_by(const void* region) const;
  virtual std::unique_lock<std::mutex> lock(std::mutex& mutex) const;
  static const Runtime& cpp();
};

struct CheckpointOptions {
  // Names the region in errors, such as "layer 3 mlp".
  std::string name = "checkpoint";
  // Which region this is, for listeners: see RegionInfo.
  std::int64_t layer_number = 0;
  std::uint32_t module = 0;
  std::int64_t microbatch = 0;
  // Hears what happens to the region; null: nobody.
  std::shared_ptr<EventListener> listener;
  // False: the forward runs as if there were no checkpoint, and what autograd saves is kept. A
  // listener hears of it all the same, so that a region can be measured before it is recomputed.
  bool recompute = true;
  // Whether to save and restore random number generators: the CPU's, and those of the inputs'
  // devices. Only a forward that draws no random numbers may do without.
  bool preserve_rng = true;
  // Whether the recompute ends at the last tensor that backward needs.
  bool early_stop = true;
  // What is held in place of the inputs between forward and recompute, such as this rank's part of
  // them: pack_inputs(inputs) is called without grad mode before the forward, and
  // unpack_inputs(packed) before a recompute gives the inputs' values back. Both or none.
  Forward pack_inputs, unpack_inputs;
  // Outlives the region.
  const Runtime* runtime = &Runtime::cpp();
};

// Runs forward(inputs), keeping the inputs in place of what autograd would have saved. Inputs may
// be undefined, need no grad, and have any dtype and device. Outputs are forward's own, of any
// number; an output may be a parameter. With grad mode off this is a plain call.
Tensors checkpoint(Forward forward, const Tensors& inputs, const CheckpointOptions& options = {});

// The same for one input and one output.
at::Tensor checkpoint(std::function<at::Tensor(const at::Tensor&)> forward, const at::Tensor& input,
                      const CheckpointOptions& options = {});

}  // namespace recoup
