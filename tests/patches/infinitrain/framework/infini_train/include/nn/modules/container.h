#pragma once
#include "infini_train/include/nn/modules/module.h"
namespace infini_train::nn {
class ModuleList : public CloneableModule<ModuleList> {
 public:
  explicit ModuleList(std::vector<std::shared_ptr<Module>>&& layers) : list_(std::move(layers)) {}
  Tensors Forward(const Tensors& x) override { return x; }
  auto begin() { return list_.begin(); }
  auto end() { return list_.end(); }
  std::shared_ptr<Module>& operator[](std::size_t i) { return list_[i]; }

 private:
  std::vector<std::shared_ptr<Module>> list_;
};
}  // namespace infini_train::nn
