#pragma once
#include <cstdint>
namespace infini_train::nn {
struct TransformerConfig {
  int64_t n_layer = 4;
  bool rope = false, swiglu = false, moe_from_layer_3 = false;
};
}  // namespace infini_train::nn
