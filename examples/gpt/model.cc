#include "model.h"

#include <cmath>

namespace gpt {

AttentionImpl::AttentionImpl(const Config& c, recoup::Layer recoup)
    : heads(c.heads / c.tensor_parallel->size()), dropout(c.dropout), recoup(std::move(recoup)) {
  qkv = register_module("qkv", ColumnLinear(c.hidden, 3 * c.hidden, c.tensor_parallel, 3));
  out = register_module("out", RowLinear(c.hidden, c.hidden, c.tensor_parallel));
}

at::Tensor AttentionImpl::forward(const at::Tensor& x) {
  const auto batch = x.size(0), sequence = x.size(1);
  // [batch, sequence, 3 * heads * head size] -> three of [batch, heads, sequence, head size]
  const auto parts =
      qkv(x).view({batch, sequence, 3, heads, -1}).permute({2, 0, 3, 1, 4}).unbind(0);
  using Tensors = std::vector<at::Tensor>;
  const auto core = [p = dropout, training = is_training()](const Tensors& in) {
    const auto scores =
        in[0].matmul(in[1].transpose(-2, -1)) / std::sqrt(static_cast<double>(in[0].size(-1)));
    const auto later = at::ones({in[0].size(-2), in[0].size(-2)},
                                scores.options().dtype(at::kBool).requires_grad(false))
                           .triu(1);
    const auto weights = scores.masked_fill(later, -INFINITY).softmax(-1);
    return at::dropout(weights, p, training).matmul(in[2]);
  };
  const auto context = recoup.run(RECOUP_CORE_ATTN, "core_attn", core, parts);
  return out(context.transpose(1, 2).reshape({batch, sequence, -1}));
}

MlpImpl::MlpImpl(const Config& c) : dropout(c.dropout) {
  fc1 = register_module("fc1", ColumnLinear(c.hidden, c.ffn, c.tensor_parallel));
  fc2 = register_module("fc2", RowLinear(c.ffn, c.hidden, c.tensor_parallel));
}

at::Tensor MlpImpl::activation(const at::Tensor& h) {
  return at::dropout(at::gelu(h), dropout, is_training());
}

MoeImpl::MoeImpl(const Config& c) {
  router = register_module("router", torch::nn::Linear(c.hidden, c.experts));
  for (std::int64_t e = 0; e < c.experts; ++e) {
    experts.push_back(register_module("expert" + std::to_string(e), std::make_shared<MlpImpl>(c)));
  }
}

at::Tensor MoeImpl::forward(const at::Tensor& x) {
  const auto rows = x.reshape({-1, x.size(-1)});
  const auto [weight, choice] = router(rows).softmax(-1).max(-1);
  auto out = at::zeros_like(rows);
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const auto mine = choice.eq(static_cast<std::int64_t>(e)).nonzero().squeeze(-1);
    const auto y = experts[e]->forward(rows.index_select(0, mine)) *
                   weight.index_select(0, mine).unsqueeze(-1);
    out = out.index_add(0, mine, y);
  }
  return out.view_as(x);
}

namespace {

// distribute_saved_activations: each tensor-parallel rank keeps its part of a checkpoint's input,
// where that is the same on all of them (one input: the MLP's or a layer's, not attention's three),
// and gathers the whole before a recompute. An input that does not divide stays whole.
void keep_parts(recoup::Layer& layer, const std::shared_ptr<Group>& group) {
  using Tensors = std::vector<at::Tensor>;
  layer.set_input_keeper<Tensors>(
      [group](const Tensors& in) -> Tensors {
        if (in.size() != 1 || in[0].numel() % group->size() != 0) return in;
        return {in[0].reshape({group->size(), -1})[group->rank()].clone(),
                at::tensor(in[0].sizes())};
      },
      [group](const Tensors& kept) -> Tensors {
        if (kept.size() != 2) return kept;
        const auto* shape = kept[1].const_data_ptr<std::int64_t>();
        return {group->all_gather(kept[0]).view(at::IntArrayRef(shape, kept[1].numel()))};
      });
}

}  // namespace

LayerImpl::LayerImpl(const Config& c, bool is_moe, recoup::Layer r)
    : dropout(c.dropout), recoup(std::move(r)) {
  keep_parts(recoup, c.tensor_parallel);
  const torch::nn::LayerNormOptions norm_options({c.hidden});
  norm1 = register_module("norm1", torch::nn::LayerNorm(norm_options));
  norm2 = register_module("norm2", torch::nn::LayerNorm(norm_options));
  attention = register_module("attention", std::make_shared<AttentionImpl>(c, recoup));
  if (is_moe) {
    moe = register_module("moe", std::make_shared<MoeImpl>(c));
  } else {
    mlp = register_module("mlp", std::make_shared<MlpImpl>(c));
  }
}

at::Tensor LayerImpl::forward(const at::Tensor& input) {
  const auto drop = [this](const at::Tensor& t) { return at::dropout(t, dropout, is_training()); };
  const auto x = input + drop(attention->forward(norm1(input)));
  const auto h = norm2(x);
  if (moe) return x + drop(recoup.run(RECOUP_MOE, "moe", moe, h));
  return x + drop(recoup.mlp([mlp = mlp](const at::Tensor& in) { return mlp->fc1(in); },
                             [mlp = mlp](const at::Tensor& in) { return mlp->activation(in); },
                             [mlp = mlp](const at::Tensor& in) { return mlp->fc2(in); }, h));
}

ModelImpl::ModelImpl(const Config& c, const recoup::Host& recoup) {
  // Every stage draws the whole model's parameters, so that they do not depend on the stages.
  const bool first = c.stage == 0, last = c.stage + 1 == c.stages;
  const auto own = [this](bool mine, const char* name, auto module) {
    return mine ? register_module(name, module) : decltype(module)(nullptr);
  };
  token = own(first, "token", torch::nn::Embedding(c.vocabulary, c.hidden));
  position = own(first, "position", torch::nn::Embedding(c.context, c.hidden));
  const auto offset = c.stage_offset();
  for (std::int64_t n = 1; n <= c.layers; ++n) {
    const bool is_moe = c.moe_every > 0 && n % c.moe_every == 0;
    const bool mine = n > offset && n <= offset + c.stage_layers();
    auto config = c;
    if (c.wide_every > 0 && n % c.wide_every == 0) config.ffn *= 4;
    const auto layer = std::make_shared<LayerImpl>(
        config, is_moe, mine ? recoup.layer({n, is_moe, offset}) : recoup::Layer());
    if (mine) layers.push_back(register_module("layer" + std::to_string(n), layer));
  }
  norm = own(last, "norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({c.hidden})));
  head = own(last, "head",
             torch::nn::Linear(torch::nn::LinearOptions(c.hidden, c.vocabulary).bias(false)));
}

at::Tensor ModelImpl::forward(const at::Tensor& input) {
  auto x = token ? token(input) + position(at::arange(input.size(1), input.options())) : input;
  for (std::size_t i = 0; i < layers.size();) {
    // Granularity full: this many layers share one checkpoint.
    const auto group = static_cast<std::size_t>(layers[i]->recoup.full_group());
    if (group == 0) {
      x = layers[i++]->forward(x);
      continue;
    }
    const auto end = std::min(i + group, layers.size());
    const std::vector<std::shared_ptr<LayerImpl>> part(layers.begin() + i, layers.begin() + end);
    x = layers[i]->recoup.checkpoint(
        "full",
        [part](at::Tensor h) {
          for (const auto& layer : part) h = layer->forward(h);
          return h;
        },
        x);
    i = end;
  }
  return head ? head(norm(x)) : x;
}

}  // namespace gpt
