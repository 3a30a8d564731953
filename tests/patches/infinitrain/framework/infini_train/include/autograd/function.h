#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>
namespace infini_train {
class Tensor;
}
namespace infini_train::autograd {
using Tensors = std::vector<std::shared_ptr<Tensor>>;

class FunctionCtx {
 public:
  struct SavedTensorHooks {
    std::function<std::shared_ptr<void>(const std::shared_ptr<Tensor>&)> pack;
    std::function<std::shared_ptr<Tensor>(const std::shared_ptr<void>&)> unpack;
  };
  static inline thread_local std::vector<SavedTensorHooks> hooks;
  struct SavedTensorHooksGuard {
    explicit SavedTensorHooksGuard(SavedTensorHooks h) { hooks.push_back(h); }
    ~SavedTensorHooksGuard() { hooks.pop_back(); }
  };
  bool IsNonDifferentiable(const std::shared_ptr<Tensor>&) const { return false; }
  void Save(const Tensors& tensors);
  Tensors Saved() const;

 private:
  struct Entry {
    std::shared_ptr<Tensor> tensor;
    std::shared_ptr<void> state;
    SavedTensorHooks hooks;
  };
  std::vector<Entry> entries_;
};

// An operation with one output.
class Function : public std::enable_shared_from_this<Function> {
 public:
  explicit Function(std::string type) : type_(std::move(type)) {}
  virtual ~Function() = default;
  Tensors Apply(const Tensors& input_tensors);
  virtual std::vector<float> Forward(const Tensors& in) = 0;
  // Which tensors backward needs, from the inputs and the output.
  virtual Tensors Needs(const Tensors& in, const std::shared_ptr<Tensor>& out) = 0;
  virtual std::vector<std::vector<float>> Backward(const Tensors& saved, const std::vector<float>& grad) = 0;

  static inline std::map<std::string, int> runs;  // kernels run, by type
  std::string type_;
  FunctionCtx ctx_;
  Tensors inputs_;      // without history, except leaves
  std::vector<std::shared_ptr<Function>> next_;
  std::vector<float> grad_;  // of the output, as it comes in
  int number_ = 0;           // in the order of the graph's making
};

void Backward(const std::shared_ptr<Tensor>& loss);
}  // namespace infini_train::autograd
