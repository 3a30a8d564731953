// recoup estimate: what a model needs on each rank, without running it.
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "bytes.h"
#include "model_options.h"
#include "recoup/policy/layers.h"
#include "table.h"

namespace recoup::cli {
namespace {

std::string percent(double part, double whole) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%", whole > 0 ? 100 * part / whole : 0);
  return text;
}

const char* freed_by(models::Frees f) {
  switch (f) {
    case models::Frees::kCoreAttn:
      return "core_attn";
    case models::Frees::kLayernorm:
      return "layernorm";
    case models::Frees::kMlaUpProj:
      return "mla_up_proj";
    case models::Frees::kMlpFull:
      return "mlp";
    case models::Frees::kMlpActivation:
      return "mlp, both levels";
    case models::Frees::kMoe:
      return "moe";
    case models::Frees::kMoeAct:
      return "moe, moe_act";
    case models::Frees::kSharedExperts:
      return "moe, shared_experts";
    default:
      return "-";
  }
}

// Layers that save the same, by whether they are MoE and the MLP's size: the first one's index, and
// the numbers of all.
using Kinds =
    std::map<std::pair<bool, std::int64_t>, std::pair<std::size_t, std::vector<std::int64_t>>>;
Kinds kinds_of(const models::Model& model) {
  Kinds kinds;
  for (std::size_t n = 0; n < model.layers.size(); ++n) {
    const auto& layer = model.layers[n];
    auto& kind = kinds[{layer.moe, layer.ffn}];
    if (kind.second.empty()) kind.first = n;
    kind.second.push_back(static_cast<std::int64_t>(n) + 1);
  }
  return kinds;
}

nlohmann::json layers_json(const models::Described& d) {
  auto list = nlohmann::json::array();
  for (const auto& [key, kind] : kinds_of(d.model)) {
    auto tensors = nlohmann::json::array();
    for (const auto& t : models::saved_by(d.model, d.parallel, kind.first)) {
      tensors.push_back({{"part", t.part},
                         {"tensor", t.what},
                         {"bytes", std::llround(t.bytes())},
                         {"once", t.once},
                         {"freed_by", freed_by(t.frees)}});
    }
    list.push_back(
        {{"layers", layer_expression(kind.second)}, {"moe", key.first}, {"tensors", tensors}});
  }
  return list;
}

void print_layers(const models::Described& d) {
  for (const auto& [key, kind] : kinds_of(d.model)) {
    const auto bytes = models::layer_bytes(d.model, d.parallel, kind.first);
    std::printf("A %s layer (%s) saves %s a microbatch; recomputing its %s frees %s:\n",
                key.first ? "MoE" : "dense", layer_expression(kind.second).c_str(),
                show_bytes(bytes.total() + bytes.once).c_str(), key.first ? "experts" : "MLP",
                show_bytes(key.first ? bytes.moe() : bytes.mlp_full()).c_str());
    Table table({"part", "tensor", "bytes", "freed by"});
    for (const auto& t : models::saved_by(d.model, d.parallel, kind.first)) {
      table.add({t.part, t.what + (t.once ? " (one for all layers)" : ""), show_bytes(t.bytes()),
                 freed_by(t.frees)});
    }
    std::printf("%s\n", table.text({1, 3}).c_str());
  }
}

// The peaks with the stage's first 0, 25, 50, 75 and 100 % recomputed.
struct Peaks {
  std::array<budget::Prediction, 5> at;
  double rerun_ns = 0;  // of a step at 100 %
  bool anything = false;
};

Peaks peaks_of(const models::Stage& s, std::int64_t microbatches) {
  Peaks peaks;
  const auto model = value_of(budget::Model::from(s.timeline));
  for (std::int64_t quarter = 0; quarter <= 4; ++quarter) {
    const auto decisions = models::first_layers(s, model, (s.layers * quarter + 2) / 4);
    peaks.at[static_cast<std::size_t>(quarter)] = model.predict(decisions);
    for (const auto l : decisions) peaks.anything = peaks.anything || l != budget::Level::kKept;
  }
  // The timeline has as many microbatches as it needs.
  std::int64_t there = 1;
  for (const auto& u : s.timeline.units) there = std::max(there, u.microbatch + 1);
  peaks.rerun_ns = static_cast<double>(peaks.at[4].cost_ns) / static_cast<double>(there) *
                   static_cast<double>(microbatches);
  return peaks;
}

void print_json(const models::Described& d, const std::vector<models::Stage>& stages, bool layers) {
  using nlohmann::json;
  auto list = json::array();
  for (const auto& s : stages) {
    auto peaks = json::array();
    for (const auto& p : peaks_of(s, d.parallel.microbatches).at) peaks.push_back(p.peak);
    const auto first = static_cast<std::size_t>(s.first_layer - 1);
    const auto bytes = models::layer_bytes(d.model, d.parallel, first);
    list.push_back({{"first_layer", s.first_layer},
                    {"layers", s.layers},
                    {"parameters", s.parameters},
                    {"weight_bytes", s.weights},
                    {"gradient_bytes", s.gradients},
                    {"optimizer_bytes", s.optimizer},
                    {"activation_bytes", s.activations},
                    {"head_bytes", s.logits},
                    {"in_flight", s.in_flight},
                    {"peak_bytes", peaks},
                    {"layer",
                     {{"saved", std::llround(bytes.total())},
                      {"mlp", std::llround(bytes.mlp_full())},
                      {"mlp_activation", std::llround(bytes.of(models::Frees::kMlpActivation))},
                      {"core_attn", std::llround(bytes.of(models::Frees::kCoreAttn))},
                      {"moe", std::llround(bytes.moe())}}}});
  }
  json all{{"model", d.model.name},
           {"parameters", std::llround(models::all_parameters(d.model))},
           {"assumed", d.model.assumed},
           {"stages", list}};
  if (layers) all["layers"] = layers_json(d);
  std::printf("%s\n", all.dump(1, ' ', true, json::error_handler_t::replace).c_str());
}

void estimate(const ModelOptions& o, bool layers, bool as_json) {
  const auto d = o.read();
  const auto which = o.recomputable();
  const auto stages = stages_of(o.model, d, which);
  if (as_json) return print_json(d, stages, layers);
  std::printf(
      "%s: %zu layers, %s parameters; %lld x %lld tokens a microbatch, %lld microbatches\n\n",
      d.model.name.c_str(), d.model.layers.size(),
      show_count(static_cast<std::int64_t>(models::all_parameters(d.model))).c_str(),
      static_cast<long long>(d.parallel.microbatch), static_cast<long long>(d.parallel.sequence),
      static_cast<long long>(d.parallel.microbatches));
  if (layers) print_layers(d);
  Table memory({"stage", "layers", "weights", "gradients", "optimizer", "activations", "in flight",
                "logits"});
  Table peaks({"peak", "N = 0", "25 %", "50 %", "75 %", "100 %", "costs at 100 %"});
  bool anything = false;
  for (const auto& s : stages) {
    const auto last = s.first_layer + s.layers - 1;
    char in_flight[32];
    std::snprintf(in_flight, sizeof in_flight, "%.4g", s.in_flight);
    memory.add({std::to_string(s.number),
                s.layers == 0 ? "none" : std::to_string(s.first_layer) + "-" + std::to_string(last),
                show_bytes(static_cast<double>(s.weights)),
                show_bytes(static_cast<double>(s.gradients)),
                show_bytes(static_cast<double>(s.optimizer)),
                show_bytes(static_cast<double>(s.activations)), in_flight,
                show_bytes(static_cast<double>(s.logits))});
    const auto peak = peaks_of(s, d.parallel.microbatches);
    std::vector<std::string> row{"stage " + std::to_string(s.number)};
    for (const auto& p : peak.at) row.push_back(show_bytes(static_cast<double>(p.peak)));
    row.push_back(percent(peak.rerun_ns, s.step_ns));
    anything = anything || peak.anything;
    peaks.add(row);
  }
  std::printf("%s\n", memory.text({1}).c_str());
  std::printf("N: %s of the stage's first layers recomputed, at the level that frees most\n%s",
              (which & RECOUP_MOE) != 0 ? "the MLPs and experts" : "the MLPs",
              peaks.text().c_str());
  if (!anything) {
    std::printf(
        "No layer has what may be recomputed: --modules names more (moe, core_attn, ...).\n");
  }
}

}  // namespace

void add_estimate(CLI::App& app) {
  const auto o = std::make_shared<ModelOptions>();
  const auto layers = std::make_shared<bool>(false), as_json = std::make_shared<bool>(false);
  auto* command =
      app.add_subcommand("estimate", "What a model needs on each rank, by pipeline stage");
  o->add_to(*command, true);
  command->add_flag("--layers", *layers, "Show what a layer saves, tensor by tensor");
  command->add_flag("--json", *as_json, "Print JSON, bytes as numbers");
  command->callback([o, layers, as_json] { estimate(*o, *layers, *as_json); });
}

}  // namespace recoup::cli
