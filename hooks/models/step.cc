// A pipeline stage's step in closed form: what it holds at rest, and its timeline.
#include "recoup/models/step.h"

#include <algorithm>
#include <cmath>

#include "step_events.h"

namespace recoup::models {
namespace {

constexpr double kMostBytes = 512.0 * (1ULL << 40);
// Of a stage's timeline: layers in all the microbatches that it has.
constexpr double kMostParts = 1 << 17;
// A century in nanoseconds: all times of a timeline add up below 2^63.
constexpr double kMostTime = 3.2e18;

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
  if (!((stage.in_flight + 1) * static_cast<double>(stage.layers) < kMostParts)) {
    return Error{"microbatches: stage " + std::to_string(number) + " would hold " +
                 std::to_string(std::llround(stage.in_flight)) + " of them at once, in " +
                 std::to_string(stage.layers) + " layers: more than can be looked at"};
  }
  double rerun_ns = 0;
  for (const auto& l : layers) rerun_ns += l.most_rerun_ns();
  if (!(rerun_ns * (stage.in_flight + 2) < kMostTime)) {
    return Error{"stage " + std::to_string(number) +
                 " would recompute for a century: flops_per_second, bytes_per_second"};
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
