// Every name of LibTorch that recoup uses and that LibTorch does not promise to keep, in one place:
// what a new LibTorch has to be compared with. No other file of the engine includes a header of
// torch/csrc or names something of torch::autograd, ATen's or c10's `impl` namespaces that is not
// here. tests/checkpoint/torch_private_test.cc fails, naming the function, where the engine of the
// LibTorch in use has a virtual function that ours does not forward.
#pragma once

#include <ATen/SavedTensorHooks.h>
#include <ATen/SequenceNumber.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/VariableHooksInterface.h>
#include <c10/core/SafePyObject.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#define RECOUP_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) ||         \
   (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

#if !RECOUP_TORCH_AT_LEAST(2, 7)
#error "recoup needs LibTorch 2.7 or later"
#endif

// 2.14: Engine::get_node_creation_hooks(); C++20 is needed to include ATen.
#if __has_include(<torch/csrc/autograd/node_creation_hook.h>)
#include <torch/csrc/autograd/node_creation_hook.h>
#define RECOUP_TORCH_NODE_CREATION_HOOKS 1
#endif

// 2.12: the state of a CUDA generator that is captured into a graph moved from CUDAGeneratorState
// into a CUDAGeneratorCaptureState for each capture (hooks/checkpoint/cuda_rng.cc).
#ifndef RECOUP_TORCH_CAPTURE_STATES  // given where tests try both
#define RECOUP_TORCH_CAPTURE_STATES RECOUP_TORCH_AT_LEAST(2, 12)
#endif

namespace recoup::torch_private {

// 2.7 and later, alike.
using at::SavedTensorDefaultHooks;                 // is_enabled(), get_tls_state(), ...
using at::impl::SavedTensorDefaultHooksTLS;        // stack, is_tracing
using c10::impl::VirtualGuardImpl;                 // streams of any device
using torch::autograd::AccumulateGrad;             // which leaf a node accumulates into
using torch::autograd::Engine;                     // the virtual functions
using torch::autograd::get_current_graph_task_id;  // which backward runs in this thread
using torch::autograd::get_current_node;           // which of its nodes
using torch::autograd::Node;                       // sequence_nr(), next_edges(), name()
using torch::autograd::SavedVariable;              // what a node saves
using torch::autograd::SavedVariableHooks;         // pack and unpack
using torch::autograd::set_default_engine_stub;    // puts an engine in place of LibTorch's
using torch::autograd::impl::version_counter;      // of a tensor and all its views

// Autograd numbers the nodes of a thread as it makes them, before they save anything.
inline std::uint64_t next_node_number() { return at::sequence_number::peek(); }

// Hooks of C++ code. Compiled autograd asks for hooks in Python (by a virtual function that not
// every version has, hence no `override`) and would say no more than that it has none.
struct Hooks : SavedVariableHooks {
  virtual const std::string& region_name() const = 0;
  virtual std::optional<std::pair<c10::SafePyObject, c10::SafePyObject>> retrieve_unpack_hook_data()
      const {
    if (looked_for_) {
      found_ = this;
      return std::nullopt;
    }
    TORCH_CHECK(false, "recoup: ", region_name(),
                ": compiled autograd cannot trace a backward that recomputes in C++; run this "
                "backward without torch._dynamo.compiled_autograd");
  }

  // A saved variable's hooks, where they are ours; else null.
  static const Hooks* of(const SavedVariable& saved) {
    found_ = nullptr;
    looked_for_ = true;
    try {
      saved.retrieve_unpack_hook_data();
    } catch (const c10::Error&) {  // of others in C++, which have none
    }
    looked_for_ = false;
    return found_;
  }

 private:
  static inline thread_local bool looked_for_ = false;
  static inline thread_local const Hooks* found_ = nullptr;
};

// 2.13: std::shared_ptr<Node> became c10::intrusive_ptr<Node>.
using NodePtr = decltype(torch::autograd::NodeTask::fn_);

}  // namespace recoup::torch_private
