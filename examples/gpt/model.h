// A GPT in LibTorch C++: pre-norm, causal attention, dropout, and a mixture of experts in place of
// every k-th layer's MLP. The only trace of recoup is a recoup::Layer in each layer.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <vector>

#include "parallel.h"
#include "recoup/host.hpp"

namespace gpt {

struct Config {
  std::int64_t layers = 24, hidden = 64, heads = 4, ffn = 256, vocabulary = 256, context = 64;
  std::int64_t moe_every = 0;  // every k-th layer is MoE; 0: none
  std::int64_t experts = 4;
  std::int64_t wide_every = 0;  // every k-th layer's MLP is four times as wide; 0: none
  double dropout = 0.1;
  std::shared_ptr<Group> tensor_parallel = std::make_shared<Group>();
  // This pipeline stage, of how many.
  std::int64_t stage = 0, stages = 1;
  // The layers before it, and its own.
  std::int64_t stage_offset() const { return layers * stage / stages; }
  std::int64_t stage_layers() const { return layers * (stage + 1) / stages - stage_offset(); }
};

// [batch, sequence, hidden] -> the same.
struct AttentionImpl : torch::nn::Module {
  AttentionImpl(const Config& config, recoup::Layer recoup);
  at::Tensor forward(const at::Tensor& x);
  ColumnLinear qkv{nullptr};
  RowLinear out{nullptr};
  std::int64_t heads;  // on this rank
  double dropout;
  recoup::Layer recoup;
};

// [rows, hidden] -> [rows, hidden], and the same with leading dimensions.
struct MlpImpl : torch::nn::Module {
  explicit MlpImpl(const Config& config);
  at::Tensor forward(const at::Tensor& x) { return fc2(activation(fc1(x))); }
  at::Tensor activation(const at::Tensor& h);  // and its dropout
  ColumnLinear fc1{nullptr};
  RowLinear fc2{nullptr};
  double dropout;
};

// Sends each token to the expert with the highest router probability, weighted by it.
struct MoeImpl : torch::nn::Module {
  explicit MoeImpl(const Config& config);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::Linear router{nullptr};
  std::vector<std::shared_ptr<MlpImpl>> experts;
};

struct LayerImpl : torch::nn::Module {
  LayerImpl(const Config& config, bool is_moe, recoup::Layer recoup);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  std::shared_ptr<AttentionImpl> attention;
  std::shared_ptr<MlpImpl> mlp;  // one of the two
  std::shared_ptr<MoeImpl> moe;
  double dropout;
  recoup::Layer recoup;
};

struct ModelImpl : torch::nn::Module {
  ModelImpl(const Config& config, const recoup::Host& recoup);
  // The first stage takes tokens [batch, sequence] of kLong, the others what the one before gave;
  // the last gives logits [batch, sequence, vocabulary], the others [batch, sequence, hidden].
  at::Tensor forward(const at::Tensor& input);
  torch::nn::Embedding token{nullptr}, position{nullptr};  // of the first stage
  std::vector<std::shared_ptr<LayerImpl>> layers;
  torch::nn::LayerNorm norm{nullptr};  // of the last one
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Model);

}  // namespace gpt
