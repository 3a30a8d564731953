#pragma once
#include <memory>
#include <string>
namespace infini_train {
class Tensor;
struct AutocastContext {
  bool on = false;
  void Autocast(const std::string&, std::shared_ptr<Tensor>&) {}
};
inline thread_local AutocastContext tls_autocast_context;
}  // namespace infini_train
