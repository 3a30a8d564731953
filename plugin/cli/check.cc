// recoup check X.yaml: what a configuration will do, and its errors as the plugin gives them.
#include <algorithm>
#include <cstdio>

#include "command.h"
#include "hosts.h"
#include "recoup/policy/config.h"
#include "recoup/policy/policy.h"
#include "table.h"

namespace recoup::cli {
namespace {

struct Options {
  std::string file, host = kHosts[0].name, moe;
  std::int64_t layers = 0;
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

// Prints what each layer recomputes, layers that do the same in one line. Whether any recomputes.
bool print_layers(const Policy& policy, std::int64_t layers, const LayerSet& moe) {
  struct Group {
    std::string kind, recomputed;
    std::vector<std::int64_t> layers;
  };
  std::vector<Group> groups;
  bool any = false;
  std::int64_t in_group = 0;
  std::int64_t mlps = 0;
  for (std::int64_t n = 1; n <= layers; ++n) {
    const bool is_moe = moe.contains(n, layers);
    const LayerInfo layer{n, is_moe, 0, is_moe ? 0 : ++mlps};
    const std::string kind = layer.is_moe ? "MoE" : "dense";
    const auto recomputed = what(policy, layer, in_group);
    any = any || recomputed != "nothing";
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
      return g.kind == kind && g.recomputed == recomputed;
    });
    if (group == groups.end()) group = groups.insert(group, {kind, recomputed, {}});
    group->layers.push_back(n);
  }
  Table table({"layers", "kind", "recomputed"});
  for (const auto& g : groups) table.add({layer_expression(g.layers), g.kind, g.recomputed});
  std::fputs(table.text({1, 2}).c_str(), stdout);
  return any;
}

void check(const Options& o) {
  const auto config = value_of(load_config(o.file));
  const auto override = value_of(Policy::find_override());
  const auto& host = *find_host(o.host);
  // Without a number of layers only what needs none can be checked: sets that count from the end
  // are tried on a model that has them all.
  auto model = model_of(host, o.layers > 0 ? o.layers : kMostLayers);
  const auto moe = o.moe.empty() ? LayerSet::first(0) : value_of(LayerSet::parse(o.moe));
  model.num_mlps =
      model.num_layers - static_cast<std::int64_t>(moe.members(model.num_layers).size());
  const auto policy = value_of(Policy::create(config, override, model));
  bool warned = false;
  for (const auto& notice : policy.notices()) {
    std::fprintf(stderr, "recoup: %s\n", notice.c_str());
    warned = true;
  }
  if (o.layers == 0) {
    std::printf("%s: valid; --layers N shows what each layer will do\n", o.file.c_str());
  } else {
    if (!print_layers(policy, o.layers, moe) && policy.config().granularity != Granularity::kNone) {
      std::fprintf(stderr, "recoup: %s: no layer of this model recomputes anything\n",
                   o.file.c_str());
      warned = true;
    }
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
  command->add_option("--host", o->host, "Whose abilities to check against")
      ->check(CLI::IsMember(host_names()))
      ->capture_default_str();
  command->add_flag("--strict", o->strict, "Warnings are errors");
  command->callback([o] { check(*o); });
}

}  // namespace recoup::cli
