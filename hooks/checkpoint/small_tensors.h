// Which saved tensors of a region are kept because they are small: see
// CheckpointOptions::keep_small.
#pragma once

#include <cstdint>

#include "recoup/checkpoint/checkpoint.h"
#include "tensor_facts.h"
#include "torch_private.h"

namespace recoup {

class SmallTensors {
 public:
  SmallTensors(const Tensors& inputs, double keep_small) : keep_small_(keep_small) {
    if (keep_small <= 0) return;
    for (const auto& input : inputs) {
      if (!input.defined() || input.layout() != at::kStrided || input.is_nested()) continue;
      input_bytes_ += static_cast<std::int64_t>(input.nbytes());
    }
  }

  // Whether `t` is one. The size is the whole storage's, which a view would keep. A parameter is
  // there anyway, until its owner frees it (as ZeRO does): it is not ours to keep.
  bool is_one(const at::Tensor& t) const {
    if (keep_small_ <= 0 || !t.has_storage() || t.unsafeGetTensorImpl()->is_python_dispatch()) {
      return false;
    }
    const auto bytes = static_cast<double>(t.storage().nbytes());
    const double limit = keep_small_ * static_cast<double>(input_bytes_);
    return bytes <= limit && static_cast<double>(kept_bytes_) + bytes <= 4 * limit &&
           !leaf_of(t).defined();
  }

  // `t` is kept, for this reason or another. The bytes of all that are.
  std::int64_t keep(const at::Tensor& t) {
    if (t.has_storage()) kept_bytes_ += static_cast<std::int64_t>(t.storage().nbytes());
    return kept_bytes_;
  }

 private:
  double keep_small_;
  std::int64_t input_bytes_ = 0, kept_bytes_ = 0;
};

}  // namespace recoup
