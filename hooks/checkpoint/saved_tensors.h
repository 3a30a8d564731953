// Saved-tensor hooks for C++: what torch.autograd.graph.saved_tensors_hooks is for Python.
//
// Autograd asks Engine::get_default_saved_variable_hooks(), which is virtual, for hooks each time
// it saves a tensor. recoup installs an engine that answers from a stack of scopes, and forwards
// everything else to the engine that was there: LibTorch's own or, in a Python process, Python's.
// While a graph is traced (torch.compile) there are no hooks, as PyTorch's own have it: the tensors
// are fake, and the compiled function saves its own when it runs.
#pragma once

#include <memory>
#include <optional>
#include <string>
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

  // At the end of a forward: says once a process, as a warning, where autograd saved tensors in
  // this scope without asking for its hooks, because the engine was replaced meanwhile (`import
  // torch` within the forward does that). Such a forward keeps what it saved; the next scope is
  // asked again.
  void warn_if_bypassed(const std::string& name) const;

 private:
  friend class HookingEngine;
  HookScope* const outer_;
  bool asked_ = false;  // make() was called
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

// While it lives, what autograd saves in this thread gets no hooks.
class NoHooks final : public HookScope {
 public:
  std::unique_ptr<torch_private::SavedVariableHooks> make() override { return nullptr; }
};

// Hooks that a tensor saved now would get: of the innermost scope, of Python, or none (null).
std::unique_ptr<torch_private::SavedVariableHooks> current_hooks();

}  // namespace recoup
