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
#include <type_traits>
#include <utility>
#include <vector>

#include "recoup/checkpoint/events.h"

namespace torch::autograd {
struct Node;
class SavedVariable;
}  // namespace torch::autograd

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
  // What a node of the forward's saves, where it is a function of the runtime's own, which reads
  // that as objects of its language: a parameter among them is kept as itself, with all that hangs
  // on it. Null: no such function. Called in the forward's thread, when it has returned.
  virtual std::vector<torch::autograd::SavedVariable>* saved_by(torch::autograd::Node& node) const;
  static const Runtime& cpp();
};

// How a recompute is compared with the forward.
enum class Check {
  kShapes,  // number, shape, dtype and device of what is saved: always done, costs nothing
  kValues,  // and a checksum for each 4,096 elements: reads everything twice more, 8 bytes a block
            // kept
  kCopy,    // and every value: keeps all that a checkpoint is there to drop
};

struct CheckpointOptions {
  // Names the region in errors, such as "layer 3 mlp".
  std::string name = "checkpoint";
  // Which region this is, for listeners: see RegionInfo.
  std::int64_t layer_number = 0;
  std::string part;
  std::uint32_t module = 0;
  std::int64_t microbatch = 0;
  // Hears what happens to the region; null: nobody.
  std::shared_ptr<EventListener> listener;
  // False: the forward runs as if there were no checkpoint, and what autograd saves is kept. A
  // listener hears of it all the same, so that a region can be measured before it is recomputed.
  bool recompute = true;
  // Whether to save and restore random number generators: the CPU's, and those of the inputs'
  // devices and of the accelerator's devices in use, which a forward may move to. Only a forward
  // that draws no random numbers may do without.
  bool preserve_rng = true;
  // Whether the recompute ends at the last tensor that backward needs.
  bool early_stop = true;
  // What is held in place of the inputs between forward and recompute, such as this rank's part of
  // them: pack_inputs(inputs) is called without grad mode before the forward, and
  // unpack_inputs(packed) before a recompute gives the inputs' values back. Both or none.
  Forward pack_inputs, unpack_inputs;
  // What `forward` reads and autograd does not save, beyond the parameters that it finds itself by
  // their gradients: frozen weights, buffers. One that is modified in place between forward and
  // recompute is an error, where it would otherwise give other gradients without a word.
  Tensors reads;
  // A saved tensor of at most this part of the inputs' bytes is kept rather than recomputed, and at
  // most four times that of them together: indices and scales late in a region would otherwise make
  // a recompute run all that comes before. 0: none is.
  double keep_small = 1.0 / 16;
  // Further saved tensors to keep, whatever their size: true for those. Called in the forward.
  std::function<bool(const at::Tensor&)> keep_saved;
  // For finding out why gradients differ; see Check.
  Check check = Check::kShapes;
  // Outlives the region.
  const Runtime* runtime = &Runtime::cpp();
};

// Runs forward(inputs), keeping the inputs in place of what autograd would have saved. Inputs may
// be undefined, need no grad, and have any dtype and device. Outputs are forward's own, of any
// number; an output may be a parameter. With grad mode off this is a plain call.
Tensors checkpoint(Forward forward, const Tensors& inputs, const CheckpointOptions& options = {});

// The same for one input and one output.
template <class F,
          class = std::enable_if_t<std::is_invocable_r_v<at::Tensor, F&, const at::Tensor&>>>
at::Tensor checkpoint(F forward, const at::Tensor& input, const CheckpointOptions& options = {}) {
  return checkpoint([forward = std::move(forward)](
                        const Tensors& in) mutable -> Tensors { return {forward(in[0])}; },
                    Tensors{input}, options)[0];
}

// rest(recomputed_part(inputs)), where only the first part is ever run again: for an MLP, fc1 and
// the activation, then what follows it. The recompute ends by returning, which costs less than an
// early stop, and what `rest` saves is found again in the first part's outputs. Nothing else
// changes: what is held and what comes out are the same. Where `rest` saves something that neither
// its parameters nor the first part's outputs hold (a dropout's mask, autocast's copy of a weight),
// both parts are run again as one, with early stop; that is said once a process.
//
// In three parts, the activation alone recomputed: h = fc1(x); checkpoint_parts(activation, fc2,
// h).
Tensors checkpoint_parts(Forward recomputed_part, Forward rest, const Tensors& inputs,
                         const CheckpointOptions& options = {});

// Whether this thread runs a recompute: for forwards that count (BatchNorm's running statistics, a
// router's load).
bool recomputing();

}  // namespace recoup
