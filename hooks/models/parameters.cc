// Weights, what stands outside the layers, and times.
#include <algorithm>

#include "recoup/models/memory.h"

namespace recoup::models {
namespace {

double d(std::int64_t n) { return static_cast<double>(n); }

double tokens(const Parallel& p) { return d(p.sequence) / d(p.context) * d(p.microbatch); }

const Layer& layer_at(const Model& m, std::size_t number) {
  return m.layers[std::min(number, m.layers.size() - 1)];
}

double attention_parameters(const Model& m, double t) {
  if (m.mla()) {
    const auto query = d(m.query_width());
    const auto q = m.query_rank > 0 ? d(m.hidden * m.query_rank) + d(m.query_rank) * (1 + query / t)
                                    : d(m.hidden) * query / t;
    return q + d(m.hidden * (m.kv_rank + m.rope_size)) + d(m.kv_rank) +
           d(m.kv_rank) * d(m.heads * (m.nope_size + m.value_size)) / t +
           d(m.result_width()) * d(m.hidden) / t;
  }
  const auto qkv = d(m.query_width()) + 2 * d(m.kv_width());
  // Where the MLP has biases the output projection has one too (Qwen2: query, key and value alone).
  const double out_bias = m.attention_bias && m.mlp_bias ? d(m.hidden) : 0;
  return (d(m.hidden) * qkv + d(m.result_width()) * d(m.hidden) + (m.attention_bias ? qkv : 0)) /
             t +
         out_bias + (m.qk_norm ? 2 * d(m.head_size) : 0);
}

// On one of t ranks; the output's bias is whole on each.
double mlp_parameters(const Model& m, double ffn, double t) {
  const bool gated = m.activation == Activation::kGated;
  return (d(m.hidden) * ffn * (gated ? 3 : 2) + (m.mlp_bias ? ffn : 0)) / t +
         (m.mlp_bias && ffn > 0 ? d(m.hidden) : 0);
}

}  // namespace

Parameters layer_parameters(const Model& m, const Parallel& p, std::size_t number) {
  const auto& layer = layer_at(m, number);
  const auto t = d(p.tensor);
  Parameters n;
  n.dense = attention_parameters(m, t) + d(m.norms * m.hidden) * (m.norm == Norm::kLayer ? 2 : 1);
  if (layer.moe) {
    n.dense += d(m.hidden * m.experts) + mlp_parameters(m, d(m.shared_ffn), t);
    n.experts = d(m.experts) / d(p.expert) * mlp_parameters(m, d(m.expert_ffn), t);
  } else {
    n.dense += mlp_parameters(m, d(layer.ffn), t);
  }
  if (number >= m.layers.size()) n.dense += d(m.hidden) * d(m.hidden) * 2;  // joins two states
  return n;
}

double embedding_parameters(const Model& m, const Parallel& p) {
  const auto split = m.implementation == Implementation::kLibtorch ? 1 : d(p.tensor);
  return d(m.vocabulary) * d(m.hidden) / split + d(m.positions) * d(m.hidden);
}

double head_parameters(const Model& m, const Parallel& p) {
  const auto split = m.implementation == Implementation::kLibtorch ? 1 : d(p.tensor);
  return d(m.hidden) * (m.norm == Norm::kLayer ? 2 : 1) + d(m.vocabulary) * d(m.hidden) / split;
}

double all_parameters(const Model& m) {
  const Parallel one;
  double sum = embedding_parameters(m, one) + head_parameters(m, one) -
               (m.tied_embeddings ? d(m.vocabulary) * d(m.hidden) : 0);
  for (std::size_t n = 0; n < m.layers.size(); ++n) sum += layer_parameters(m, one, n).sum();
  return sum;
}

HeadBytes head_bytes(const Model& m, const Parallel& p) {
  HeadBytes h;
  const auto rows = tokens(p), hidden = rows * d(m.hidden), logits = rows * d(m.vocabulary);
  const auto e = m.act_bytes, t = d(p.tensor), s = p.sequence_parallel ? t : 1;
  if (m.vocabulary == 0) return h;
  switch (m.implementation) {
    case Implementation::kLibtorch:
      // Final norm, logits, log-probabilities, tokens; then the gradients of both.
      h.saved = 2 * hidden * e + 2 * rows * 4 + 3 * rows * 8;
      h.logits = 2 * logits * e;
      h.backward = 2 * logits * e;
      h.freed = logits * e;  // log-probabilities
      h.held = logits * e;   // the trainer's variable
      break;
    case Implementation::kMegatron:
      h.saved = 2 * hidden * e / s;
      h.logits = 4 * logits / t;
      h.backward = e * logits / t;
      h.freed = h.logits;
      break;
    case Implementation::kHuggingFace:
      // The final norm as any other; the head's input; logits as they are and, for the loss, in
      // fp32.
      h.saved = hidden * ((m.norm == Norm::kLayer ? e : 4 + e) + e) / s + rows * 8;
      h.logits = logits * (e + 4) / t;
      h.backward = logits * (4 + e) / t;
      h.freed = h.logits;
      break;
  }
  return h;
}

LayerTimes layer_times(const Model& m, const Parallel& p, std::size_t number) {
  const auto& layer = layer_at(m, number);
  const auto rows = tokens(p), t = d(p.tensor);
  const auto flops = [&](double n) { return n / p.flops_per_second / t * 1e9; };
  const auto bytes = layer_bytes(m, p, number);
  // Each byte brought back is written, and about twice as many are read.
  const auto traffic = [&](Frees f) { return 3 * bytes.of(f) / p.bytes_per_second * 1e9; };
  const auto gates = m.activation == Activation::kGated ? 2.0 : 1.0;
  const auto core =
      4 * rows * d(p.sequence) * d(m.query_width()) * (m.attention == Attention::kFlash ? 0.5 : 1);
  LayerTimes times;
  const auto at = [&](Frees f) -> double& { return times.rerun[static_cast<std::size_t>(f)]; };
  at(Frees::kCoreAttn) = flops(core) + traffic(Frees::kCoreAttn);
  at(Frees::kLayernorm) = traffic(Frees::kLayernorm);
  if (m.mla()) {
    at(Frees::kMlaUpProj) = flops(2 * rows *
                                  (d(m.query_rank) * d(m.query_width()) +
                                   d(m.kv_rank) * d(m.heads * (m.nope_size + m.value_size)))) +
                            traffic(Frees::kMlaUpProj);
  }
  at(Frees::kMlpFull) = flops(2 * rows * d(m.hidden) * d(layer.ffn) * gates);
  at(Frees::kMlpActivation) = traffic(Frees::kMlpActivation);
  double mlp = 2 * rows * d(m.hidden) * d(layer.ffn) * (gates + 1);
  if (layer.moe) {
    const auto chosen = rows * d(m.chosen);
    at(Frees::kMoe) =
        flops(2 * chosen * d(m.hidden) * d(m.expert_ffn) * gates) + traffic(Frees::kMoe);
    at(Frees::kMoeAct) = traffic(Frees::kMoeAct);
    at(Frees::kSharedExperts) =
        flops(2 * rows * d(m.hidden) * d(m.shared_ffn) * gates) + traffic(Frees::kSharedExperts);
    mlp = 2 * d(m.hidden) * (gates + 1) * (chosen * d(m.expert_ffn) + rows * d(m.shared_ffn));
  }
  times.forward = flops(2 * rows * attention_parameters(m, 1) + core + mlp);
  return times;
}

}  // namespace recoup::models
