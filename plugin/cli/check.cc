// recoup check X.yaml: what a configuration will do, and its errors as the plugin gives them.
#include <algorithm>
#include <cstdio>
#include <set>

#include "command.h"
#include "hosts.h"
#include "recoup/models/model.h"
#include "recoup/policy/config.h"
#include "recoup/policy/construction.h"
#include "recoup/policy/policy.h"
#include "table.h"

namespace recoup::cli {
namespace {

struct Options {
  std::string file, host = kHosts[0].name, moe, model;
  std::int64_t layers = 0, pipeline = 1;
  bool strict = false;
};

// More than any model has; a table of this many takes no noticeable time.
constexpr std::int64_t kMostLayers = 1'000'000;

// "mlp (level activation), core_attn", or "nothing".
std::string what(const Policy& policy, const LayerInfo& layer, std::int64_t& in_group) {
  if (const auto group = policy.full_group(layer); group > 0) in_group = group;
  if (in_group > 0) {
    --in_group;
    return "the whole layer";
  }
  std::string text;
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    const auto module = static_cast<Module>(m);
    if (!policy.recomputes(module, layer)) continue;
    text += (text.empty() ? "" : ", ") + std::string(kModules[m].name);
    if (module == Module::kMlp) {
      text += policy.mlp_level(layer) == MlpLevel::kFull ? " (level full)" : " (level activation)";
    }
  }
  return text.empty() ? "nothing" : text;
}

// The model's layers as a host would construct them, stage by stage.
std::vector<std::vector<LayerInfo>> stages_of(const Options& o) {
  models::Described d;
  if (!o.model.empty()) {
    d = value_of(models::read_model(o.model));
    if (!o.moe.empty()) throw Problem("--moe: " + o.model + " says which layers are MoE");
    const auto layers = static_cast<std::int64_t>(d.model.layers.size());
    if (o.layers > 0 && o.layers != layers) {
      throw Problem("--layers: " + o.model + " has " + std::to_string(layers) + " layers");
    }
  } else {
    const auto moe = o.moe.empty() ? LayerSet::first(0) : value_of(LayerSet::parse(o.moe));
    for (std::int64_t n = 1; n <= o.layers; ++n) {
      d.model.layers.push_back({moe.contains(n, o.layers), 0});
    }
  }
  const auto layers = static_cast<std::int64_t>(d.model.layers.size());
  if (o.pipeline > layers) {
    throw Problem("--pipeline-parallel: " + std::to_string(o.pipeline) + " stages for " +
                  std::to_string(layers) + " layers");
  }
  if (o.pipeline > 1) d.parallel.stages.clear();
  d.parallel.pipeline = o.pipeline > 1 ? o.pipeline : d.parallel.pipeline;
  std::vector<std::vector<LayerInfo>> stages;
  std::int64_t number = 0, dense = 0;
  for (const auto count : models::stage_layers(d.model, d.parallel)) {
    stages.emplace_back();
    for (const auto offset = number; number < offset + count;) {
      const bool moe = d.model.layers[static_cast<std::size_t>(number++)].moe;
      stages.back().push_back({number, moe, offset, moe ? 0 : ++dense});
    }
  }
  return stages;
}

// Prints what each layer recomputes, layers that do the same in one line, and the policy's
// warnings. Whether there was a warning.
bool print_layers(const Options& o, const Config& config, const std::optional<Override>& override) {
  struct Group {
    std::string kind, recomputed;
    std::vector<std::int64_t> layers;
  };
  std::vector<Group> groups;
  std::set<std::string> said;
  const auto stages = stages_of(o);
  auto model = model_of(*find_host(o.host), 0);
  model.num_mlps = 0;
  for (const auto& stage : stages) {
    model.num_layers += static_cast<std::int64_t>(stage.size());
    for (const auto& layer : stage) *model.num_mlps += layer.is_moe ? 0 : 1;
  }
  const auto warn = [&](const std::string& text) {
    if (said.insert(text).second) std::fprintf(stderr, "recoup: %s\n", text.c_str());
  };
  std::vector<LayerInfo> all;
  std::string summary;
  for (const auto& stage : stages) {
    model.stage_num_layers = static_cast<std::int64_t>(stage.size());
    const auto policy = value_of(Policy::create(config, override, model));
    for (const auto& notice : policy.notices()) warn(notice);
    std::int64_t in_group = 0;
    for (const auto& layer : stage) {
      const std::string kind = layer.is_moe ? "MoE" : "dense";
      const auto recomputed = what(policy, layer, in_group);
      auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
        return g.kind == kind && g.recomputed == recomputed;
      });
      if (group == groups.end()) group = groups.insert(group, {kind, recomputed, {}});
      group->layers.push_back(layer.number);
      all.push_back(layer);
    }
    if (&stage == &stages.back()) summary = policy.summary(all);
    Construction construction(policy);  // what only the constructed layers show
    for (const auto& layer : stage) {
      for (const auto& line : construction.add(layer)) {
        if (line.warning && stages.size() == 1) warn(line.text);
      }
    }
  }
  Table table({"layers", "kind", "recomputed"});
  bool any = false;
  for (const auto& g : groups) {
    table.add({layer_expression(g.layers), g.kind, g.recomputed});
    any = any || g.recomputed != "nothing";
  }
  std::printf("%s\n%s", summary.c_str(), table.text({1, 2}).c_str());
  if (!any && config.granularity != Granularity::kNone) {
    warn(o.file + ": no layer of this model recomputes anything");
  }
  return !said.empty();
}

void check(const Options& o) {
  const auto config = value_of(load_config(o.file));
  const auto override = value_of(Policy::find_override());
  bool warned = false;
  if (o.layers > 0 || !o.model.empty()) {
    warned = print_layers(o, config, override);
  } else {
    // Without a number of layers only what needs none can be checked: sets that count from the end
    // are tried on a model that has them all.
    auto model = model_of(*find_host(o.host), kMostLayers);
    model.num_mlps = kMostLayers;
    const auto policy = value_of(Policy::create(config, override, model));
    for (const auto& notice : policy.notices()) {
      std::fprintf(stderr, "recoup: %s\n", notice.c_str());
      warned = true;
    }
    std::printf("%s: valid; --layers N or --model shows what each layer will do\n", o.file.c_str());
  }
  if (warned && o.strict) throw Problem(o.file + ": refused by --strict, see above");
}

}  // namespace

void add_check(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "check", "Reads a configuration as the plugin would and shows what each layer will do");
  command->add_option("file", o->file, "The YAML file")->required();
  command->add_option("--layers", o->layers, "Layers of the model")
      ->check(CLI::Range(std::int64_t{1}, kMostLayers));
  command->add_option("--moe", o->moe, "Which layers are MoE, as a layer expression (4-, 1-24:2)");
  command->add_option("--model", o->model, "A model file in place of --layers and --moe");
  command
      ->add_option("--pipeline-parallel", o->pipeline,
                   "Pipeline stages, for keys that count within one")
      ->check(CLI::Range(std::int64_t{1}, kMostLayers));
  command->add_option("--host", o->host, "Whose abilities to check against")
      ->check(CLI::IsMember(host_names()))
      ->capture_default_str();
  command->add_flag("--strict", o->strict, "Warnings are errors");
  command->callback([o] { check(*o); });
}

}  // namespace recoup::cli
