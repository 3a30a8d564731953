#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
namespace infini_train {
namespace autograd {
class Function;
}
enum class DataType { kFLOAT32 };
inline const std::unordered_map<DataType, std::string> kDataTypeToDesc{{DataType::kFLOAT32, "float32"}};
struct Device {
  bool operator==(const Device&) const { return true; }
};

// A vector of floats; `live` counts the floats of all tensors.
class Tensor {
 public:
  explicit Tensor(std::vector<float> v, bool requires_grad = false)
      : value(std::make_shared<Storage>(std::move(v))), requires_grad_(requires_grad) {}
  std::vector<int64_t> Dims() const { return {int64_t(value->size())}; }
  DataType Dtype() const { return DataType::kFLOAT32; }
  Device GetDevice() const { return {}; }
  std::shared_ptr<Tensor> Detach() const {
    auto t = std::make_shared<Tensor>(std::vector<float>());
    t->value = value;
    return t;
  }
  bool requires_grad() const { return requires_grad_; }
  void set_requires_grad(bool r) { requires_grad_ = r; }

  std::shared_ptr<Tensor> Matmul(const std::shared_ptr<Tensor>& other);
  std::shared_ptr<Tensor> MaskedFill(const std::shared_ptr<Tensor>&, float);
  std::shared_ptr<Tensor> Transpose(int, int);

  struct Storage : std::vector<float> {
    explicit Storage(std::vector<float> v) : std::vector<float>(std::move(v)) { live += size(); }
    ~Storage() { live -= size(); }
  };
  static inline long live = 0;
  std::shared_ptr<Storage> value;
  std::shared_ptr<autograd::Function> grad_fn;
  std::vector<float> grad;

 private:
  bool requires_grad_;
};
std::shared_ptr<Tensor> operator+(const std::shared_ptr<Tensor>&, const std::shared_ptr<Tensor>&);
std::shared_ptr<Tensor> operator*(const std::shared_ptr<Tensor>&, const std::shared_ptr<Tensor>&);
std::shared_ptr<Tensor> operator*(const std::shared_ptr<Tensor>&, double);
}  // namespace infini_train
