#include "infini_train/include/nn/modules/transformer/causal_self_attention.h"

#include <cmath>

#include "infini_train/include/nn/modules/transformer/ops.h"

namespace infini_train::nn {
CausalSelfAttention::CausalSelfAttention(const TransformerConfig &config) : config_(config) {
    for (const char *name : {"q", "k", "v", "c_proj"}) { modules_[name] = std::make_shared<Linear>("attention"); }
    bias_ = std::make_shared<Tensor>(std::vector<float>{1});
}

Module::Tensors CausalSelfAttention::Forward(const Tensors &x) {
    return config_.rope ? ForwardWithRoPE(x) : ForwardStandard(x);
}

std::vector<std::shared_ptr<Tensor>>
CausalSelfAttention::ForwardStandard(const std::vector<std::shared_ptr<Tensor>> &x) {
    const auto T = 1, head_dim = 4;
    auto q = (*modules_["q"])(x)[0], k = (*modules_["k"])(x)[0], v = (*modules_["v"])(x)[0];

    auto att = q->Matmul(k->Transpose(-2, -1)) * (1.0 / std::sqrt(head_dim));
    att = att->MaskedFill(bias_, -T);
    att = Softmax(att);
    auto y = att->Matmul(v);
    return (*modules_["c_proj"])({y});
}

std::vector<std::shared_ptr<Tensor>>
CausalSelfAttention::ForwardWithRoPE(const std::vector<std::shared_ptr<Tensor>> &x) {
    const auto D = x[0]->Dims()[0];
    const auto mask = x.at(3);
    auto q = (*modules_["q"])({x[0] * x[1]})[0], k = (*modules_["k"])({x[0]})[0], v = (*modules_["v"])({x[0]})[0];

    auto att = q->Matmul(k->Transpose(-2, -1)) * (1.0 / std::sqrt(static_cast<float>(D)));
    if (mask) {
        att = att->MaskedFill(mask, std::numeric_limits<float>::lowest());
    }
    att = Softmax(att);
    auto y = att->Matmul(v);
    return (*modules_["c_proj"])({y});
}
} // namespace infini_train::nn
