#include "layer_plan.h"

#include <algorithm>

namespace recoup::models {

double LayerPlan::most_rerun_ns() const {
  double sum = 0;
  for (const auto* units : {&before, &mlp}) {
    for (const auto& unit : *units) sum += unit.full_ns;
  }
  return sum;
}

LayerPlan plan_of(const Described& d, std::size_t number, Recomputable which) {
  const auto& m = d.model;
  const auto& p = d.parallel;
  const auto bytes = layer_bytes(m, p, number);
  const auto times = layer_times(m, p, number);
  const auto weights = layer_parameters(m, p, number);
  const bool moe = m.layers[std::min(number, m.layers.size() - 1)].moe;
  LayerPlan plan;
  plan.output = bytes.input;
  plan.forward_ns = times.forward;
  // The MLP's side: its rows, and of the norms the later half.
  const auto tensors = saved_by(m, p, number);
  const auto norms = std::count_if(tensors.begin(), tensors.end(),
                                   [](const SavedTensor& t) { return t.part == "norm"; });
  std::ptrdiff_t norm = 0;
  for (const auto& t : tensors) {
    const bool late = t.part == "norm" && ++norm > (m.parallel_block ? norms : norms / 2);
    const bool of_mlp = late || t.part == "mlp" || t.part == "moe" || t.part == "shared";
    if (!t.once) (of_mlp ? plan.mlp_other : plan.other) += t.bytes();
  }
  const auto ns = [&](Frees f) { return times.rerun[static_cast<std::size_t>(f)]; };
  const auto simple = [&](std::uint32_t bit, Frees f, const char* part) {
    if ((which & bit) == 0 || bytes.of(f) <= 0) return;
    plan.before.push_back({part, bytes.of(f), 0, 0, ns(f), 0, true, false});
    (f == Frees::kSharedExperts ? plan.mlp_other : plan.other) -= bytes.of(f);
  };
  simple(RECOUP_LAYERNORM, Frees::kLayernorm, "layernorm");
  simple(RECOUP_MLA_UP_PROJ, Frees::kMlaUpProj, "mla_up_proj");
  simple(RECOUP_CORE_ATTN, Frees::kCoreAttn, "core_attn");
  if (moe) {
    const bool full = (which & RECOUP_MOE) != 0, act = (which & RECOUP_MOE_ACT) != 0;
    const auto all = bytes.moe(), outer = all - bytes.of(Frees::kMoeAct);
    if (full || act) {
      Unit u{"moe",
             all,
             outer,
             plan.output,
             ns(Frees::kMoe) + ns(Frees::kMoeAct) + ns(Frees::kSharedExperts),
             ns(Frees::kMoeAct),
             full,
             act};
      plan.mlp.push_back(u);
      plan.mlp_other -= all;
    }
    if (!full) simple(RECOUP_SHARED_EXPERTS, Frees::kSharedExperts, "shared_experts");
    plan.mlp_backward = bytes.of(Frees::kMoe) / 2 + bytes.of(Frees::kMoeAct) / 2;
  } else {
    if ((which & RECOUP_MLP) != 0) {
      Unit u{"mlp",
             bytes.mlp_full(),
             bytes.of(Frees::kMlpFull),
             plan.output,
             ns(Frees::kMlpFull) + ns(Frees::kMlpActivation),
             ns(Frees::kMlpActivation),
             true,
             (which & RECOUP_MLP_ACTIVATION) != 0};
      plan.mlp.push_back(u);
      plan.mlp_other -= bytes.mlp_full();
    }
    // fc2's input has a gradient while all is saved; the activation's backward frees as it goes.
    plan.mlp_backward = bytes.of(Frees::kMlpFull);
  }
  if (m.attention == Attention::kEager) {
    // The scores before and after each step; with dropout more of them is saved and freed again.
    const double scores = static_cast<double>(p.sequence) / static_cast<double>(p.context) *
                          static_cast<double>(p.microbatch * p.sequence * m.heads) /
                          static_cast<double>(p.tensor) * m.act_bytes;
    const bool dropout = m.attention_dropout > 0;
    plan.attention_forward = (dropout ? 1 : 2) * scores;
    // With one sequence query, key and value are views of one tensor, which stays to the end.
    const double result = plan.output / static_cast<double>(p.sequence_parallel ? 1 : p.tensor);
    const double value = p.microbatch > 1 ? result : 0;
    plan.attention_backward =
        dropout ? scores + result : std::max(scores + result, 2 * scores - value);
  } else {
    plan.attention_backward = 3 * plan.output;
  }
  const double tokens = static_cast<double>(p.sequence) / static_cast<double>(p.context) *
                        static_cast<double>(p.microbatch);
  plan.qkv_backward = tokens * static_cast<double>(m.query_width() + 2 * m.kv_width()) /
                      static_cast<double>(p.tensor) * m.act_bytes;
  const double gradient = p.fp32_gradients ? 4 : static_cast<double>(m.weight_bytes);
  const double split = p.zero >= 2 ? static_cast<double>(p.data * p.context) : 1;
  const bool gated = m.activation == Activation::kGated;
  const auto ffn = static_cast<double>(m.layers[std::min(number, m.layers.size() - 1)].ffn);
  const double fc2 = moe ? weights.experts / 3
                         : static_cast<double>(m.hidden) * ffn / static_cast<double>(p.tensor);
  const double fc1 = fc2 * (gated || moe ? 2 : 1);
  plan.fc2_gradients = fc2 * gradient / split;
  plan.fc1_gradients = fc1 * gradient / split;
  const double out =
      static_cast<double>(m.result_width() * m.hidden) / static_cast<double>(p.tensor);
  plan.out_gradients = out * gradient / split;
  plan.qkv_gradients = (weights.sum() - fc1 - fc2 - out) * gradient / split;
  if (p.zero == 3) plan.gathered = weights.sum() * static_cast<double>(m.weight_bytes);
  return plan;
}

}  // namespace recoup::models
