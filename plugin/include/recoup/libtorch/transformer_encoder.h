// recoup for LibTorch's own torch::nn::TransformerEncoder: a subclass with the same options,
// parameters and state_dict names whose layers recompute their feed-forward where recoup says so.
//
//   recoup::Host recoup("librecoup.so", {"my_trainer", TORCH_VERSION});
//   recoup::TransformerEncoder encoder(torch::nn::TransformerEncoderOptions(layer, 6), recoup);
//   auto y = encoder->forward(src, mask);
//
// Host options for it: modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION. Layers that recompute nothing
// run the stock layer's own forward.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "recoup/host.hpp"

namespace recoup {

class TransformerEncoderImpl : public torch::nn::TransformerEncoderImpl {
 public:
  // `first_layer` is the global number of the encoder's first layer.
  TransformerEncoderImpl(torch::nn::TransformerEncoderOptions options, const Host& recoup,
                         std::int64_t first_layer = 1)
      : torch::nn::TransformerEncoderImpl(std::move(options)) {
    for (std::size_t i = 0; i < layers->size(); ++i) {
      recoup_.push_back(recoup.layer({first_layer + static_cast<std::int64_t>(i)}));
    }
  }

  // Shapes as torch::nn::TransformerEncoder's: src [sequence, batch, d_model] -> the same.
  at::Tensor forward(const at::Tensor& src, const at::Tensor& mask = {},
                     const at::Tensor& key_padding_mask = {}) {
    auto x = src;
    for (std::size_t i = 0; i < layers->size(); ++i) {
      const auto layer = layers->ptr<torch::nn::TransformerEncoderLayerImpl>(i);
      x = recoup_[i].recompute_mlp() ? recomputing(layer, recoup_[i], x, mask, key_padding_mask)
                                     : layer->forward(x, mask, key_padding_mask);
    }
    return norm.is_empty() ? x : norm.forward<at::Tensor>(x);
  }

 private:
  using LayerPtr = std::shared_ptr<torch::nn::TransformerEncoderLayerImpl>;

  static at::Tensor activate(const torch::nn::activation_t& activation, const at::Tensor& h) {
    if (std::get_if<torch::enumtype::kGELU>(&activation) != nullptr) return at::gelu(h);
    if (std::get_if<torch::enumtype::kReLU>(&activation) != nullptr) return at::relu(h);
    return std::get<std::function<at::Tensor(const at::Tensor&)>>(activation)(h);
  }

  // A post-norm encoder layer, its feed-forward through recoup.
  static at::Tensor recomputing(const LayerPtr& layer, const Layer& recoup, const at::Tensor& x,
                                const at::Tensor& mask, const at::Tensor& key_padding_mask) {
    auto& l = *layer;
    const auto attended =
        std::get<0>(l.self_attn(x, x, x, key_padding_mask, /*need_weights=*/true, mask));
    const auto h = l.norm1(x + l.dropout1(attended));
    const auto fed = recoup.mlp([layer](const at::Tensor& in) { return layer->linear1(in); },
                                [layer](const at::Tensor& in) {
                                  return layer->dropout(activate(layer->options.activation(), in));
                                },
                                [layer](const at::Tensor& in) { return layer->linear2(in); }, h);
    return l.norm2(h + l.dropout2(fed));
  }

  std::vector<Layer> recoup_;
};
TORCH_MODULE(TransformerEncoder);

}  // namespace recoup
