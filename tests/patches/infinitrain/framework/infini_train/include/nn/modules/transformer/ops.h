// The operations that the layers are made of.
#pragma once
#include "infini_train/include/nn/modules/module.h"
namespace infini_train::nn {
std::shared_ptr<Tensor> Softmax(const std::shared_ptr<Tensor>&);

// x times one weight.
class Linear : public CloneableModule<Linear> {
 public:
  explicit Linear(const char* type);
  Tensors Forward(const Tensors& x) override;
  std::shared_ptr<Tensor> weight;

 private:
  std::string type_;
};
class Activation : public CloneableModule<Activation> {
 public:
  Tensors Forward(const Tensors& x) override;
};
class Norm : public CloneableModule<Norm> {
 public:
  Tensors Forward(const Tensors& x) override;
};
// Every weight that was made, in order.
std::vector<std::shared_ptr<Tensor>>& Parameters();
}  // namespace infini_train::nn
