// Saved-tensor hooks for C++: what torch.autograd.graph.saved_tensors_hooks is for Python.
//
// Autograd asks Engine::get_default_saved_variable_hooks(), which is virtual, for hooks each time
// it saves a tensor. recoup installs an engine that answers from a stack of scopes, and forwards
// everything else to the engine that was there: LibTorch's own or, in a Python process, Python's.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "torch_private.h"

namespace recoup {

// While it lives, every tensor that autograd saves in this thread gets hooks made by make(). Scopes
// nest; the innermost one answers. Python hooks that were pushed before the scope do not apply
// within it; those pushed within it win over it.
class HookScope {
 public:
  // Precondition: saved-tensor hooks are enabled in this thread (an error otherwise).
  HookScope();
  virtual ~HookScope();
  HookScope(const HookScope&) = delete;
  HookScope& operator=(const HookScope&) = delete;

  virtual std::unique_ptr<torch_private::SavedVariableHooks> make() = 0;

 private:
  friend class HookingEngine;
  HookScope* const outer_;
  std::optional<torch_private::SavedTensorDefaultHooksTLS> python_before_;
};

// The scope of hooks that are made of one thing: Hooks(of).
template <class Hooks, class Of>
class HooksOf final : public HookScope {
 public:
  explicit HooksOf(Of of) : of_(std::forward<Of>(of)) {}
  std::unique_ptr<torch_private::SavedVariableHooks> make() override {
    return std::make_unique<Hooks>(of_);
  }

 private:
  Of of_;
};

// Hooks that a tensor saved now would get: of the innermost scope, of Python, or none (null).
std::unique_ptr<torch_private::SavedVariableHooks> current_hooks();

}  // namespace recoup
