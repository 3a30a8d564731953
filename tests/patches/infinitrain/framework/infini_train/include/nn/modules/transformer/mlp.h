#pragma once
#include "infini_train/include/nn/modules/module.h"
#include "infini_train/include/nn/modules/transformer/transformer_config.h"
namespace infini_train::nn {
class MLP : public CloneableModule<MLP> {
public:
    static constexpr char kCFcLayerName[] = "c_fc", kCFc2LayerName[] = "c_fc2", kGeluLayerName[] = "gelu";
    static constexpr char kSiluLayerName[] = "silu", kCProjLayerName[] = "c_proj";
    explicit MLP(const TransformerConfig &config);

    Tensors Forward(const Tensors &x) override;
};
} // namespace infini_train::nn
