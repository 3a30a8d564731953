#pragma once
#include "infini_train/include/nn/modules/module.h"
#include "infini_train/include/nn/modules/transformer/transformer_config.h"
namespace infini_train::nn {
class CausalSelfAttention : public CloneableModule<CausalSelfAttention> {
public:
    explicit CausalSelfAttention(const TransformerConfig &config);

    Tensors Forward(const Tensors &x) override;

private:
    Tensors ForwardStandard(const Tensors &x);
    Tensors ForwardWithRoPE(const Tensors &x);
    TransformerConfig config_;
    std::shared_ptr<Tensor> bias_;
};
} // namespace infini_train::nn
