// The closed form as a timeline. What allocates when, in the order of the step:
//   forward of a layer   attention's tensors, then the MLP's, each part's transients on top
//   after the last       final norm, logits, loss
//   backward             the gradient that comes in, reruns, each GEMM's gradients, released
//   tensors gradients            kept over the step (Megatron's buffer; accumulation), or as they
//   come in the
//                        first microbatch
#include "recoup/models/step.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "recoup/policy/config.h"

namespace recoup::models {
namespace {

using budget::EventKind;
using budget::Level;

constexpr double kMostBytes = 512.0 * (1ULL << 40);

struct Unit {
  const char* part;
  double freed = 0;  // at kFull
  double kept = 0;   // of that, what kActivation keeps; 0: no such level
  double output = 0;
  double full_ns = 0, activation_ns = 0;
  bool may_full = true, may_activation = false;
};

// A layer as its step needs it, in bytes.
struct LayerPlan {
  double other = 0, mlp_other = 0;  // saved and not freed by any unit: attention's side, the MLP's
  std::vector<Unit> before, mlp;    // units of attention's side, and of the MLP's (at most one)
  double output = 0;                // the hidden state
  // What else is allocated for a moment: while attention runs; in its backward; in the MLP's
  // backward first for the gradient of fc2's input, then for that of fc1's result.
  double attention_forward = 0, attention_backward = 0, mlp_backward = 0;
  double qkv_gradients = 0, out_gradients = 0, fc1_gradients = 0, fc2_gradients = 0;  // of weights
  double qkv_backward = 0;  // the gradient of query, key and value together
  double gathered = 0;      // ZeRO 3: the layer's weights while it runs
  double forward_ns = 0;
};

class Simulation {
 public:
  explicit Simulation(double start) : bytes_(start), peak_(start) {}

  void add(double amount) {
    bytes_ += amount;
    peak_ = std::max(peak_, bytes_);
  }
  void event(EventKind kind, std::int32_t unit) {
    timeline.events.push_back(
        {kind, unit, std::llround(bytes_), std::llround(std::max(peak_, bytes_))});
    largest_ = std::max(largest_, peak_);
    peak_ = bytes_;
  }
  double largest() const { return std::max(largest_, peak_); }

  budget::Timeline timeline;

 private:
  double bytes_, peak_, largest_ = 0;
};

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

class Step {
 public:
  Step(std::vector<LayerPlan> layers, double at_rest, HeadBytes head, double once, bool last,
       bool gradients_come, double head_gradients, double embedding_gradients)
      : layers_(std::move(layers)),
        head_(head),
        last_(last),
        gradients_come_(gradients_come),
        head_gradients_(head_gradients),
        embedding_gradients_(embedding_gradients),
        sim_(at_rest + once) {}

  // `part` of a microbatch's layers, of its first ones.
  void forward(std::int64_t microbatch, std::size_t count) {
    const auto base = units_of(microbatch, count);
    for (std::size_t n = 0; n < count; ++n) {
      const auto& l = layers_[n];
      sim_.add(l.gathered);
      sim_.add(l.other);
      sim_.add(l.attention_forward), sim_.add(-l.attention_forward);
      auto u = base + first_unit_[n];
      for (const auto& unit : l.before) forward_unit(unit, u++);
      sim_.add(l.mlp_other);
      for (const auto& unit : l.mlp) {
        forward_unit(unit, u++);
        sim_.add(-unit.output);  // into the residual sum, which the next norm saves
      }
      sim_.add(-l.gathered);
    }
    if (last_) sim_.add(head_.saved + head_.logits);
  }

  void backward(std::int64_t microbatch, std::size_t count) {
    const auto base = bases_[microbatch];
    const bool come = gradients_come_ && !come_;
    come_ = true;
    if (last_) {
      sim_.add(head_.backward);
      sim_.add(-head_.freed - head_.backward / 2);  // the loss's own gradient is through
      gradients(head_gradients_, come);
      sim_.add(layers_.empty() ? 0 : layers_[0].output);
      sim_.add(-head_.backward / 2 - (head_.logits + head_.saved - head_.freed - head_.held));
    } else {
      sim_.add(layers_.empty() ? 0 : layers_[0].output);  // the gradient that comes in
    }
    for (auto n = count; n-- > 0;) {
      const auto& l = layers_[n];
      sim_.add(l.gathered);
      auto u = base + first_unit_[n] + static_cast<std::int32_t>(l.before.size() + l.mlp.size());
      if (l.mlp.empty()) {
        sim_.add(l.mlp_backward), sim_.add(-l.mlp_backward);
        gradients(l.fc2_gradients, come), gradients(l.fc1_gradients, come);
      }
      for (const auto& unit : l.mlp) {
        begin_backward(unit, --u);
        sim_.add(l.mlp_backward);
        gradients(l.fc2_gradients, come);
        sim_.add(-unit.freed);
        sim_.event(EventKind::kBackwardEnd, u);
        sim_.add(l.output);
        gradients(l.fc1_gradients, come);
        sim_.add(-l.mlp_backward - l.output);
      }
      sim_.add(l.output);  // through the norm
      sim_.add(-l.output - l.mlp_other);
      gradients(l.out_gradients, come);
      for (auto k = l.before.size(); k-- > 0;) {
        begin_backward(l.before[k], --u);
        const double transient = k + 1 == l.before.size() ? l.attention_backward : 0;
        sim_.add(transient);
        sim_.add(-l.before[k].freed - transient);
        sim_.event(EventKind::kBackwardEnd, u);
      }
      if (l.before.empty()) sim_.add(l.attention_backward), sim_.add(-l.attention_backward);
      // What the query, key and value GEMM and the norm before it saved goes last.
      const double tail = std::min(l.other, 2 * l.output);
      sim_.add(tail - l.other);
      sim_.add(l.qkv_backward + l.output);
      gradients(l.qkv_gradients, come);
      sim_.add(-l.qkv_backward - l.output - tail);
      sim_.add(-l.gathered);
    }
    gradients(embedding_gradients_, come);
    if (!layers_.empty()) sim_.add(-layers_[0].output);
    if (last_) sim_.add(-head_.held);
  }

  void finish() { sim_.event(EventKind::kStepEnd, -1); }
  double largest() const { return sim_.largest(); }
  budget::Timeline take() { return std::move(sim_.timeline); }

 private:
  // Describes the units of a microbatch's first `count` layers; the number of the first.
  std::int32_t units_of(std::int64_t microbatch, std::size_t count) {
    const auto base = static_cast<std::int32_t>(sim_.timeline.units.size());
    bases_[microbatch] = base;
    for (std::size_t n = 0; n < count; ++n) {
      const auto first = static_cast<std::int32_t>(sim_.timeline.units.size()) - base;
      if (first_unit_.size() <= n) first_unit_.push_back(first);
      for (const auto* list : {&layers_[n].before, &layers_[n].mlp}) {
        for (const auto& unit : *list) sim_.timeline.units.push_back(describe(unit, n, microbatch));
      }
    }
    return base;
  }

  static budget::Unit describe(const Unit& unit, std::size_t layer, std::int64_t microbatch) {
    budget::Unit b;
    b.layer = static_cast<std::int64_t>(layer) + 1;
    b.part = unit.part;
    b.microbatch = microbatch;
    b.may_full = unit.may_full;
    b.may_activation = unit.may_activation;
    b.level = Level::kFull;  // in this step, even where it may not be chosen
    b.fc1_bytes = std::llround(unit.kept);
    b.output_bytes = std::llround(unit.output);
    b.holds_fc1 = true;
    b.cost_ns = {0, std::llround(unit.activation_ns), std::llround(unit.full_ns)};
    return b;
  }

  void forward_unit(const Unit& unit, std::int32_t u) {
    sim_.event(EventKind::kForwardBegin, u);
    sim_.add(unit.freed + unit.output);
    sim_.add(-unit.freed);
    sim_.event(EventKind::kForwardEnd, u);
  }
  void begin_backward(const Unit& unit, std::int32_t u) {
    sim_.event(EventKind::kBackwardBegin, u);
    sim_.add(unit.freed);
    sim_.event(EventKind::kRerunEnd, u);
  }
  void gradients(double amount, bool come) {
    sim_.add(amount);
    if (!come) sim_.add(-amount);  // added to what is there
  }

  std::vector<LayerPlan> layers_;
  HeadBytes head_;
  bool last_, gradients_come_, come_ = false;
  double head_gradients_, embedding_gradients_;
  std::map<std::int64_t, std::int32_t> bases_;  // the first unit of each microbatch
  std::vector<std::int32_t> first_unit_;        // of each layer, within its microbatch
  Simulation sim_;
};

}  // namespace

Result<Stage> stage_of(const Described& d, std::int64_t number, Recomputable which) {
  const auto& m = d.model;
  const auto& p = d.parallel;
  const auto per_stage = stage_layers(m, p);
  Stage stage;
  stage.number = number;
  for (std::int64_t s = 0; s < number; ++s)
    stage.first_layer += per_stage[static_cast<std::size_t>(s)];
  ++stage.first_layer;
  stage.layers = per_stage[static_cast<std::size_t>(number)];
  const bool first = number == 0, last = number + 1 == p.pipeline;

  std::vector<LayerPlan> layers;
  double saved = 0, once = 0, dense = 0, experts = 0, forward_ns = 0;
  const auto add = [&](std::size_t n) {
    layers.push_back(plan_of(d, n, which));
    const auto bytes = layer_bytes(m, p, n);
    const auto weights = layer_parameters(m, p, n);
    saved += bytes.total(), once = std::max(once, bytes.once);
    dense += weights.dense, experts += weights.experts;
    forward_ns += layers.back().forward_ns;
  };
  for (std::int64_t n = 0; n < stage.layers; ++n) {
    add(static_cast<std::size_t>(stage.first_layer - 1 + n));
  }
  for (std::int64_t n = 0; last && n < m.mtp_layers; ++n)
    add(m.layers.size() + static_cast<std::size_t>(n));
  double head_weights = 0;
  if (first) dense += embedding_parameters(m, p);
  if (last) {
    head_weights = head_parameters(m, p);
    // On one stage a tied head is the embedding.
    if (m.tied_embeddings && first) head_weights -= embedding_parameters(m, p);
    head_weights = std::max(head_weights, 0.0);
    dense += head_weights;
  }

  const auto replicas = static_cast<double>(p.data * p.context);
  const auto expert_replicas = replicas / static_cast<double>(p.expert);
  const auto split = [&](std::int64_t from, double bytes_each) {
    return p.zero >= from ? dense * bytes_each / replicas + experts * bytes_each / expert_replicas
                          : (dense + experts) * bytes_each;
  };
  const double weight = static_cast<double>(m.weight_bytes);
  const double gradient = p.fp32_gradients ? 4 : weight;
  const double state = p.optimizer == "adam" ? 8 : 0;
  // Narrow weights have fp32 masters in the optimizer.
  const double master = p.optimizer == "none" || m.weight_bytes == 4 ? 0 : 4;
  // Megatron's buffer and accumulated gradients stand; else gradients come in the first backward.
  const bool stand =
      p.optimizer != "none" && (m.implementation == Implementation::kMegatron || p.zero >= 2);
  const double weights = split(3, weight), optimizer = split(1, state + master);
  const double gradients = split(2, gradient);
  stage.parameters = std::llround(dense + experts);
  const auto head = last ? head_bytes(m, p) : HeadBytes{};
  stage.in_flight = in_flight(p, number);
  const auto whole = static_cast<std::int64_t>(std::floor(stage.in_flight + 1e-9));
  const auto part = stage.in_flight - static_cast<double>(whole);
  const double at_rest = weights + optimizer + (stand ? gradients : 0);
  if (!(at_rest + gradients + (saved + head.saved + head.logits) * (stage.in_flight + 1) <
        kMostBytes)) {
    return Error{"stage " + std::to_string(number) + " needs more than 512 TiB on a rank"};
  }
  stage.weights = std::llround(weights);
  stage.optimizer = std::llround(optimizer);
  stage.gradients = std::llround(gradients);
  stage.at_rest = std::llround(at_rest);
  stage.activations = std::llround(saved);
  stage.logits = std::llround(head.saved + head.logits);
  stage.step_ns = 3 * forward_ns * static_cast<double>(p.microbatches);

  // One microbatch more than are held at once: the second finds the first one's gradients.
  const double shard = p.zero >= 2 ? replicas : 1;
  Step step(layers, at_rest, head, once, last, !stand, head_weights * gradient / shard,
            first ? embedding_parameters(m, p) * gradient / shard : 0);
  const auto count = layers.size();
  const auto some = static_cast<std::size_t>(std::ceil(part * static_cast<double>(count)));
  const auto held = std::max<std::int64_t>(whole, 1);
  const auto total = std::min(p.microbatches, held + 1);
  std::int64_t next = 0, done = 0;
  while (next < total) {
    step.forward(next++, count);
    if (next - done < held && next < total) continue;
    // A part of one more microbatch, where schedules hold parts.
    if (some > 0 && done == 0 && next == held) {
      step.forward(total, some);
      step.backward(0, count), ++done;
      step.backward(total, some);
      continue;
    }
    step.backward(done++, count);
  }
  while (done < total) step.backward(done++, count);
  step.finish();
  if (!(step.largest() < kMostBytes)) {
    return Error{"stage " + std::to_string(number) + " needs more than 512 TiB on a rank"};
  }
  stage.timeline = step.take();
  for (auto& u : stage.timeline.units) u.layer += stage.first_layer - 1;
  return stage;
}

budget::Decisions first_layers(const Stage& stage, const budget::Model& model, std::int64_t n) {
  auto decisions = model.kept();
  const auto deepest = model.deepest();
  for (std::size_t u = 0; u < decisions.size(); ++u) {
    const auto& unit = stage.timeline.units[u];
    const bool mlp = unit.part == "mlp" || unit.part == "moe";
    if (mlp && unit.layer < stage.first_layer + n) decisions[u] = deepest[u];
  }
  return decisions;
}

}  // namespace recoup::models
