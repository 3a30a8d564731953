#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "infini_train/include/tensor.h"
namespace infini_train::nn {
class Module {
 public:
  using Tensors = std::vector<std::shared_ptr<Tensor>>;
  explicit Module(std::string = "") {}
  virtual ~Module() = default;
  Tensors operator()(const Tensors& x) { return Forward(x); }
  virtual Tensors Forward(const Tensors& x) = 0;
  std::shared_ptr<Module>& mutable_module(const std::string& name) { return modules_.at(name); }

 protected:
  std::unordered_map<std::string, std::shared_ptr<Module>> modules_;
};
template <class Derived>
class CloneableModule : public Module {
 public:
  using Module::Module;
};
}  // namespace infini_train::nn
