// How a model is spread over ranks: what is possible, and who holds what.
#include <algorithm>
#include <numeric>

#include "recoup/models/model.h"
#include "values.h"

namespace recoup::models {
namespace {

std::string divides(const char* key, std::int64_t by, const char* what, std::int64_t number) {
  if (by <= 0 || number % by == 0) return {};
  return std::string(key) + ": " + std::to_string(by) + " does not divide " + what + ", " +
         std::to_string(number);
}

}  // namespace

Result<bool> check(const Model& m, const Parallel& p) {
  const auto say = [](const std::string& text) { return Error{text}; };
  if (p.sequence <= 0) return say("sequence: is not said; give the tokens in a sequence");
  for (const auto& wrong : {
           divides("tensor_parallel", p.tensor, "the attention heads", m.heads),
           divides("tensor_parallel", p.tensor, "the key and value heads",
                   m.mla() ? m.heads : m.kv_heads),
           divides("tensor_parallel", p.sequence_parallel ? p.tensor : 0, "the sequence",
                   p.sequence),
           divides("tensor_parallel", m.experts > 0 ? p.tensor : 0, "the experts' inner size",
                   m.expert_ffn),
           divides("context_parallel", p.context, "the sequence", p.sequence),
           divides("expert_parallel", p.expert, "the experts", m.experts),
       }) {
    if (!wrong.empty()) return say(wrong);
  }
  for (const auto& layer : m.layers) {
    if (const auto wrong = divides("tensor_parallel", p.tensor, "the MLP's inner size", layer.ffn);
        !wrong.empty()) {
      return say(wrong);
    }
  }
  if (p.expert > 1 && m.experts == 0) return say("expert_parallel: this model has no experts");
  // The experts are split by tensor parallelism too, so that their ranks are replicas of the rest.
  if (p.expert > 1 && (p.data * p.context) % p.expert != 0) {
    return say("expert_parallel: " + std::to_string(p.expert) +
               " does not divide data_parallel x context_parallel, " +
               std::to_string(p.data * p.context));
  }
  if (p.sequence_parallel && p.tensor == 1) {
    return say("sequence_parallel: needs tensor_parallel above 1");
  }
  const auto layers = static_cast<std::int64_t>(m.layers.size());
  if (p.pipeline > layers) {
    return say("pipeline_parallel: " + std::to_string(p.pipeline) + " stages for " +
               std::to_string(layers) + " layers");
  }
  if (!p.stages.empty()) {
    const auto sum = std::accumulate(p.stages.begin(), p.stages.end(), std::int64_t{0});
    if (static_cast<std::int64_t>(p.stages.size()) != p.pipeline) {
      return say("stages: names " + std::to_string(p.stages.size()) +
                 " stages, pipeline_parallel " + std::to_string(p.pipeline));
    }
    if (sum != layers) {
      return say("stages: have " + std::to_string(sum) + " layers, the model " +
                 std::to_string(layers));
    }
  }
  const auto ends = (p.first_stage > 0) + (p.last_stage > 0);
  if (ends > 0 &&
      (p.pipeline <= ends || p.first_stage + p.last_stage > layers - (p.pipeline - ends))) {
    return say("first_stage, last_stage: leave no layer for one of the other stages");
  }
  if (p.schedule == "interleaved" && p.virtual_stages < 2) {
    return say("schedule: interleaved needs virtual_stages of 2 or more");
  }
  if (p.virtual_stages > 1) {
    if (p.pipeline < 2) return say("virtual_stages: needs pipeline_parallel above 1");
    for (const auto n : stage_layers(m, p)) {
      const auto wrong = divides("virtual_stages", p.virtual_stages, "a stage's layers", n);
      if (!wrong.empty()) return say(wrong);
    }
  }
  return true;
}

std::vector<std::int64_t> stage_layers(const Model& m, const Parallel& p) {
  if (!p.stages.empty()) return p.stages;
  const auto count = static_cast<std::size_t>(p.pipeline);
  std::vector<std::int64_t> stages(count, 0);
  std::vector<std::size_t> open;  // whose layers are not said
  auto left = static_cast<std::int64_t>(m.layers.size());
  for (std::size_t s = 0; s < count; ++s) {
    const auto said = s == 0 && p.first_stage > 0          ? p.first_stage
                      : s + 1 == count && p.last_stage > 0 ? p.last_stage
                                                           : 0;
    stages[s] = said;
    left -= said;
    if (said == 0) open.push_back(s);
  }
  if (open.empty()) return stages;
  const auto n = static_cast<std::int64_t>(open.size());
  const auto most = (left + n - 1) / n;
  for (const auto s : open) stages[s] = most;
  // The stages with the head and with the embedding have less, then those next to them.
  auto over = most * n - left;
  for (std::size_t k = 0; over > 0; ++k, --over) {
    const auto from_end = k / 2;
    --stages[k % 2 == 0 ? open[open.size() - 1 - from_end] : open[from_end]];
  }
  return stages;
}

double in_flight(const Parallel& p, std::int64_t stage) {
  const auto all = static_cast<double>(p.microbatches);
  if (p.schedule == "gpipe") return all;
  if (p.schedule == "zero-bubble") return std::min(static_cast<double>(p.pipeline), all);
  if (p.schedule == "interleaved") {
    // Megatron's warm-up: 2 (P - p - 1) + (v - 1) P chunks, and the one that is running.
    const auto v = static_cast<double>(p.virtual_stages);
    const auto chunks = 2.0 * static_cast<double>(p.pipeline - stage - 1) +
                        (v - 1) * static_cast<double>(p.pipeline) + 1;
    return std::min(chunks / v, all);
  }
  return std::min(static_cast<double>(p.pipeline - stage), all);
}

}  // namespace recoup::models
