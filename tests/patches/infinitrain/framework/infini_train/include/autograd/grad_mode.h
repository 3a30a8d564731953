#pragma once
namespace infini_train::autograd {
struct GradMode {
  static inline thread_local bool on = true;
  static bool IsEnabled() { return on; }
};
struct EnableGradGuard {
  bool before = GradMode::on;
  EnableGradGuard() { GradMode::on = true; }
  ~EnableGradGuard() { GradMode::on = before; }
};
struct NoGradGuard {
  bool before = GradMode::on;
  NoGradGuard() { GradMode::on = false; }
  ~NoGradGuard() { GradMode::on = before; }
};
}  // namespace infini_train::autograd
