#include "infini_train/include/nn/modules/transformer/transformer.h"

#include "glog/logging.h"

#include "infini_train/include/nn/modules/container.h"
#include "infini_train/include/nn/modules/transformer/causal_self_attention.h"
#include "infini_train/include/nn/modules/transformer/mlp.h"
#include "infini_train/include/nn/modules/transformer/ops.h"

namespace infini_train::nn {
namespace {
// Stands where an MLP would.
class MoELayer : public CloneableModule<MoELayer> {
public:
    Tensors Forward(const Tensors &x) override { return experts_(x); }

private:
    Linear experts_{"experts"};
};
} // namespace

TransformerLayer::TransformerLayer(const nn::TransformerConfig &config) : CloneableModule(kType) {
    static int made = 0;
    modules_[kLn1LayerName] = std::make_shared<Norm>();
    modules_[kLn2LayerName] = std::make_shared<Norm>();
    modules_[kAttnLayerName] = std::make_shared<CausalSelfAttention>(config);
    if (config.moe_from_layer_3 && ++made > 2) {
        modules_[kMlpLayerName] = std::make_shared<MoELayer>();
    } else {
        modules_[kMlpLayerName] = std::make_shared<MLP>(config);
    }
}

Module::Tensors TransformerLayer::Forward(const Tensors &x) {
    auto attn_input = x;
    attn_input[0] = (*modules_[kLn1LayerName])({x[0]})[0];
    auto x1 = x[0] + (*modules_[kAttnLayerName])(attn_input)[0];
    auto x2 = x1 + (*modules_[kMlpLayerName])((*modules_[kLn2LayerName])({x1}))[0];
    return {x2};
}

TransformerChunk::TransformerChunk(const TransformerConfig &config, int start_layer, int end_layer) : config_(config) {
    std::vector<std::shared_ptr<nn::Module>> h;
    for (int64_t i = start_layer; i < end_layer; ++i) {
        auto layer = std::make_shared<TransformerLayer>(config);
        h.push_back(layer);
    }
    modules_[kHLayerName] = std::make_shared<nn::ModuleList>(std::move(h));
}

Module::Tensors TransformerChunk::Forward(const Tensors &x) {
    auto x1 = x[0];
    if (config_.rope) {
        const auto n = x1->value->size();
        auto freqs_view = std::make_shared<Tensor>(std::vector<float>(n, 0.5f));
        auto mask = std::make_shared<Tensor>(std::vector<float>(n, 1));
        std::shared_ptr<Tensor> start_pos_ptr = nullptr;
        for (auto &h : *std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName])) {
            x1 = (*h)({x1, freqs_view, start_pos_ptr, mask})[0];
        }
    } else {
        for (auto &h : *std::dynamic_pointer_cast<nn::ModuleList>(modules_[kHLayerName])) { x1 = (*h)({x1})[0]; }
    }
    return {x1};
}
} // namespace infini_train::nn
