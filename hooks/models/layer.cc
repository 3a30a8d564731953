// A layer as a list of saved tensors, from the tables.
#include <algorithm>
#include <numeric>

#include "recoup/models/memory.h"
#include "tables.h"

namespace recoup::models {
namespace {

// What a norm is over: its width, and its rows a token.
struct Self {
  double width = 0, rows = 1;
};

class Lister {
 public:
  Lister(const Model& model, const Parallel& parallel, const Layer& layer)
      : m_(model), p_(parallel), layer_(layer) {}

  template <std::size_t n>
  void add(const char* part, const Row (&rows)[n], Self self = {}) {
    for (const auto& row : rows) {
      if (!applies(row.when)) continue;
      const auto elements = tokens() * width(row.width, self) * row.times / share(row.split);
      if (elements <= 0) continue;
      list_.push_back(
          {row.what, part, elements, size(row.type), row.frees, row.when == When::kOncePerModel});
    }
  }

  std::vector<SavedTensor> take() { return std::move(list_); }

 private:
  double tokens() const {
    return static_cast<double>(p_.sequence) / static_cast<double>(p_.context) *
           static_cast<double>(p_.microbatch);
  }

  bool applies(When when) const {
    switch (when) {
      case When::kDropout:
        return m_.dropout > 0;
      case When::kNoDropout:
        return m_.dropout <= 0;
      case When::kAttentionDropout:
        return m_.attention_dropout > 0;
      case When::kNoAttentionDropout:
        return m_.attention_dropout <= 0;
      case When::kOncePerModel:
        return m_.positions == 0;
      case When::kUnfusedQkv:
        return !m_.fused_qkv;
      case When::kFusedQkv:
        return m_.fused_qkv;
      case When::kQueryRank:
        return m_.query_rank > 0;
      case When::kLowPrecision:
        return m_.act_bytes < 4;
      case When::kFp32Router:
        return m_.fp32_router;
      case When::kAlways:
        break;
    }
    return true;
  }

  double width(Width w, const Self& self) const {
    const auto d = [](std::int64_t n) { return static_cast<double>(n); };
    switch (w) {
      case Width::kSelf:
        return self.width;
      case Width::kSelfRows:
        return self.rows;
      case Width::kHidden:
        return d(m_.hidden);
      case Width::kQuery:
        return d(m_.query_width());
      case Width::kKeyValue:
        return d(m_.kv_width());
      case Width::kRepeated:
        return m_.mla() || m_.kv_heads == 1 ? 0 : d(m_.query_width() - m_.kv_width());
      case Width::kResult:
        return d(m_.result_width());
      case Width::kQueryRank:
        return d(m_.query_rank);
      case Width::kKvRank:
        return d(m_.kv_rank);
      case Width::kMlaKeyValue:
        return d(m_.heads) * d(m_.nope_size + m_.value_size);
      case Width::kFfn:
        return d(layer_.ffn);
      case Width::kHeads:
        return d(m_.heads);
      case Width::kScores:
        return d(m_.heads) * d(p_.sequence);
      case Width::kMask:
        return d(p_.sequence) / d(p_.microbatch);
      case Width::kRotary:
        return d(m_.mla() ? m_.rope_size : m_.head_size) / d(p_.microbatch);
      case Width::kOne:
        return 1;
      case Width::kExperts:
        return d(m_.experts);
      case Width::kRouterWeight:
        return d(m_.experts) * d(m_.hidden) / tokens();
      case Width::kChosen:
        return d(m_.chosen);
      case Width::kChosenHidden:
        return d(m_.chosen) * d(m_.hidden);
      case Width::kChosenFfn:
        return d(m_.chosen) * d(m_.expert_ffn);
      case Width::kChosenWeights:
        return d(m_.chosen) * d(m_.hidden) * d(m_.expert_ffn);
      case Width::kSharedFfn:
        return d(m_.shared_ffn);
    }
    return 0;
  }

  double size(Type type) const {
    switch (type) {
      case Type::kAct:
        return m_.act_bytes;
      case Type::kGemm:
        return m_.gemm_bytes;
      case Type::kFp32:
        return 4;
      case Type::kByte:
        return 1;
      case Type::kInt64:
        return 8;
    }
    return 0;
  }

  double share(Split split) const {
    const bool splits =
        split == Split::kTensor || (split == Split::kSequence && p_.sequence_parallel);
    return splits ? static_cast<double>(p_.tensor) : 1;
  }

  const Model& m_;
  const Parallel& p_;
  const Layer& layer_;
  std::vector<SavedTensor> list_;
};

void add_norm(Lister& list, const Model& m, const char* part, Self self) {
  if (m.norm == Norm::kLayer) {
    m.implementation == Implementation::kMegatron ? list.add(part, kNormMegatron, self)
                                                  : list.add(part, kLayerNorm, self);
  } else if (m.implementation == Implementation::kMegatron) {
    list.add(part, kNormMegatron, self);
  } else if (m.norm == Norm::kRmsOnePlus) {
    list.add(part, kRmsNormOnePlus, self);
  } else {
    list.add(part, kRmsNormEager, self);
  }
}

void add_attention(Lister& list, const Model& m) {
  const auto d = [](std::int64_t n) { return static_cast<double>(n); };
  const bool megatron = m.implementation == Implementation::kMegatron;
  list.add("attention", kAttentionInput);
  if (m.mla()) {
    if (m.query_rank > 0) add_norm(list, m, "attention", {d(m.query_rank), 1});
    add_norm(list, m, "attention", {d(m.kv_rank), 1});
    list.add("attention", kAttentionMla);
  } else {
    if (m.qk_norm) {
      add_norm(list, m, "attention", {d(m.query_width()), d(m.heads)});
      add_norm(list, m, "attention", {d(m.kv_width()), d(m.kv_heads)});
    }
    if (megatron) {
      list.add("attention", kAttentionMegatron);
    } else if (m.positions > 0) {
      list.add("attention", kAttentionFusedPlain);
    } else {
      list.add("attention", kAttentionHf);
    }
  }
  if (m.attention == Attention::kFlash) {
    list.add("attention", kCoreFlash);
  } else if (megatron) {
    list.add("attention", kCoreMegatron);
  } else {
    list.add("attention", kCoreEagerHf);
  }
  list.add("attention", kAttentionOutput);
}

void add_mlp(Lister& list, const Model& m) {
  if (!m.parallel_block || m.norms > 1) list.add("mlp", kMlpInput);
  if (m.activation == Activation::kGelu) {
    list.add("mlp", kMlpGelu);
  } else if (m.activation == Activation::kGeluTanh) {
    list.add("mlp", kMlpGeluPython);
  } else if (m.implementation == Implementation::kMegatron) {
    list.add("mlp", kMlpGatedFused);
  } else {
    list.add("mlp", kMlpGated);
  }
  list.add("mlp", kMlpOutput);
}

void add_moe(Lister& list, const Model& m) {
  list.add("moe", kMoeInput);
  list.add("moe", kMoeRouter);
  if (m.implementation == Implementation::kMegatron) {
    list.add("moe", kMoeExpertsFused);
  } else {
    list.add("moe", kMoeExperts);
    if (m.experts_by == Experts::kLoop) list.add("moe", kMoeLoop);
    if (m.experts_by == Experts::kBatched) list.add("moe", kMoeBatched);
  }
  if (m.shared_ffn > 0) list.add("shared", kMoeShared);
}

}  // namespace

std::vector<SavedTensor> saved_by(const Model& m, const Parallel& p, std::size_t number) {
  // A multi-token-prediction layer is like the last one.
  const auto& layer = m.layers[std::min(number, m.layers.size() - 1)];
  Lister list(m, p, layer);
  const Self hidden{static_cast<double>(m.hidden), 1};
  for (std::int64_t n = 0; n < m.norms; ++n) add_norm(list, m, "norm", hidden);
  if (m.implementation == Implementation::kLibtorch) {
    list.add("attention", kLibtorchAttention);
    list.add("mlp", kLibtorchMlp);
    return list.take();
  }
  add_attention(list, m);
  layer.moe ? add_moe(list, m) : add_mlp(list, m);
  return list.take();
}

double LayerBytes::total() const { return std::accumulate(by.begin(), by.end(), 0.0); }

LayerBytes layer_bytes(const Model& m, const Parallel& p, std::size_t number) {
  LayerBytes bytes;
  for (const auto& t : saved_by(m, p, number)) {
    if (t.once) {
      bytes.once += t.bytes();
    } else {
      bytes.by[static_cast<std::size_t>(t.frees)] += t.bytes();
    }
  }
  const double tokens = static_cast<double>(p.sequence) / static_cast<double>(p.context) *
                        static_cast<double>(p.microbatch);
  bytes.input = tokens * static_cast<double>(m.hidden) * m.act_bytes /
                (p.sequence_parallel ? static_cast<double>(p.tensor) : 1);
  bytes.mlp_input = bytes.input;
  return bytes;
}

}  // namespace recoup::models
