// Whether a recompute gave the values that the forward gave: for CheckpointOptions::check.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace recoup {

class Fingerprint {
 public:
  // A checksum for each 4,096 elements of `t` or, where `copy`, its values. Nothing of a tensor
  // without plain dense memory (nested, sparse, quantized, a Python subclass): it is not compared.
  void take(const at::Tensor& t, bool copy);
  // How the values of `t` differ from those taken; empty where they are the same bits.
  std::string differs(const at::Tensor& t) const;

 private:
  at::Tensor sums_, copy_;
};

}  // namespace recoup
