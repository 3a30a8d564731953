#pragma once
#include "infini_train/include/nn/modules/module.h"
#include "infini_train/include/nn/modules/transformer/transformer_config.h"
#include "infini_train/include/nn/parallel/pp/pipeline_parallel.h"
namespace infini_train::nn {
class TransformerLayer : public CloneableModule<TransformerLayer> {
public:
    static constexpr char kType[] = "Layer", kLn1LayerName[] = "ln_1", kAttnLayerName[] = "attn", kLn2LayerName[] = "ln_2";
    static constexpr char kMlpLayerName[] = "mlp";
    explicit TransformerLayer(const TransformerConfig &config);

    Tensors Forward(const Tensors &x) override;
};

class TransformerChunk : public CloneableModule<TransformerChunk> {
public:
    static constexpr char kHLayerName[] = "h";
    TransformerChunk(const TransformerConfig &config, int start_layer, int end_layer);

    Tensors Forward(const Tensors &x) override;

private:
    const TransformerConfig config_;
};
} // namespace infini_train::nn
