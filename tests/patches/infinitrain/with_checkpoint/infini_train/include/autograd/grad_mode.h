#pragma once
namespace infini_train::autograd {
struct GradMode {
  static inline thread_local bool on = true, propagate = false;
  static bool IsEnabled() { return on; }
  static bool PropagateRequiresGrad() { return propagate; }
};
struct NoGradGuard {
  bool before = GradMode::on;
  NoGradGuard() { GradMode::on = false; }
  ~NoGradGuard() { GradMode::on = before; }
};
struct PropagateRequiresGradGuard {
  bool before = GradMode::propagate;
  PropagateRequiresGradGuard() { GradMode::propagate = true; }
  ~PropagateRequiresGradGuard() { GradMode::propagate = before; }
};
}  // namespace infini_train::autograd
