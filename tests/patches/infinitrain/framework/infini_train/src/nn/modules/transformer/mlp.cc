#include "infini_train/include/nn/modules/transformer/mlp.h"

#include "infini_train/include/nn/modules/transformer/ops.h"

namespace infini_train::nn {
MLP::MLP(const TransformerConfig &config) {
    modules_[kCFcLayerName] = std::make_shared<Linear>("fc1");
    if (config.swiglu) {
        modules_[kCFc2LayerName] = std::make_shared<Linear>("fc1");
        modules_[kSiluLayerName] = std::make_shared<Activation>();
    } else {
        modules_[kGeluLayerName] = std::make_shared<Activation>();
    }
    modules_[kCProjLayerName] = std::make_shared<Linear>("fc2");
}

Module::Tensors MLP::Forward(const Tensors &x) {
    if (modules_.contains(kSiluLayerName)) {
        auto x1 = (*modules_[kCFcLayerName])(x)[0];
        auto x2 = (*modules_[kCFc2LayerName])(x)[0];
        x2 = (*modules_[kSiluLayerName])({x2})[0];
        return (*modules_[kCProjLayerName])({x1 * x2});
    } else {
        auto x1 = (*modules_[kCFcLayerName])(x);
        return (*modules_[kCProjLayerName])((*modules_[kGeluLayerName])(x1));
    }
}
} // namespace infini_train::nn
