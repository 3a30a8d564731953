// recoup explain TIMELINE|TRACE|PROFILE: what holds the peak, what to give up first, what a budget
// would choose.
#include <algorithm>
#include <cstdio>

#include "bytes.h"
#include "command.h"
#include "configuration.h"
#include "file.h"
#include "measured.h"
#include "recoup/budget/choose.h"
#include "recoup/policy/layers.h"
#include "table.h"

namespace recoup::cli {
namespace {

struct Options {
  std::string file, budget, output;
  std::int64_t stage = -1;
  bool same = false;
};

constexpr std::size_t kLargestTimeline = std::size_t{1} << 28;

// Units from the one that frees most for its time on; alike ones in one line.
void print_units(const budget::Model& model) {
  struct Kind {
    std::string part;
    std::size_t first;
    std::vector<std::int64_t> layers;
  };
  std::vector<Kind> kinds;
  const auto deepest = model.deepest();
  for (std::size_t u = 0; u < model.units().size(); ++u) {
    const auto& unit = model.timeline().units[u];
    if (unit.microbatch != model.timeline().units[0].microbatch) continue;
    const auto at = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& k) {
      return k.part == unit.part && model.units()[k.first].dropped == model.units()[u].dropped &&
             model.units()[k.first].cost_ns == model.units()[u].cost_ns;
    });
    if (at == kinds.end()) {
      kinds.push_back({unit.part, u, {unit.layer}});
    } else {
      at->layers.push_back(unit.layer);
    }
  }
  const auto freed = [&](const Kind& k) {
    return static_cast<double>(model.units()[k.first].dropped[index(deepest[k.first])]);
  };
  const auto cost = [&](const Kind& k) {
    return static_cast<double>(model.units()[k.first].cost_ns[index(deepest[k.first])]);
  };
  std::stable_sort(kinds.begin(), kinds.end(), [&](const Kind& a, const Kind& b) {
    return freed(a) * std::max(cost(b), 1.0) > freed(b) * std::max(cost(a), 1.0);
  });
  Table table({"layers", "part", "frees each", "costs each"});
  for (auto& k : kinds) {
    std::sort(k.layers.begin(), k.layers.end());
    char ms[32];
    std::snprintf(ms, sizeof ms, "%.3f ms", cost(k) / 1e6);
    table.add({layer_expression(k.layers), k.part, show_bytes(freed(k)), ms});
  }
  std::printf("\nTo give up first (most bytes for their time; earliest layers first):\n%s",
              table.text({1}).c_str());
}

void explain(const Options& o) {
  const auto text = value_of(read_file(o.file, kLargestTimeline, "timeline, trace or profile"));
  if (is_json(text)) {
    if (!o.budget.empty() || o.stage >= 0 || o.same) {
      throw Problem(o.file +
                    ": --budget, --pipeline-stage and --same need a timeline: traces and "
                    "profiles do not know what holds the peak");
    }
    return explain_json(text, o.file);
  }
  const auto model = value_of(budget::Model::from(value_of(budget::parse(text, o.file))));
  const auto& t = model.timeline();
  const auto measured = model.predict(model.measured()), plain = model.predict(model.kept()),
             deepest = model.predict(model.deepest());
  const auto line = [&](const char* what, const budget::Prediction& p) {
    std::printf("%-24s %15s bytes (%s), held by %s\n", what, show_count(p.peak).c_str(),
                show_bytes(static_cast<double>(p.peak)).c_str(), t.describe(p.holder).c_str());
  };
  line("as measured", measured);
  line("nothing recomputed", plain);
  line("everything recomputed", deepest);
  if (!t.units.empty()) print_units(model);
  if (o.budget.empty()) return;

  const auto limit = budget_bytes(o.budget);
  budget::Options options;
  options.same_in_microbatches = o.same || !o.output.empty();
  if (o.stage >= 0) options.pipeline = budget::Pipeline{o.stage};
  const auto choice = budget::choose(model, limit, options);
  if (!choice.fits) {
    throw Problem(o.file + ": no choice fits " + show_count(limit) + " bytes: the least is " +
                  show_count(budget::least_budget(model, options)) + ", held by " +
                  t.describe(choice.prediction.holder));
  }
  std::printf("\nA budget of %s bytes: peak %s, %.3f ms of recompute a step\n",
              show_count(limit).c_str(), show_count(choice.prediction.peak).c_str(),
              static_cast<double>(choice.prediction.cost_ns) / 1e6);
  std::map<std::int64_t, std::map<std::string, std::vector<std::int64_t>>> chosen;
  for (std::size_t u = 0; u < t.units.size(); ++u) {
    if (choice.decisions[u] == budget::Level::kKept) continue;
    chosen[t.units[u].microbatch]
          [t.units[u].part +
           (choice.decisions[u] == budget::Level::kFull ? " (level full)" : " (level activation)")]
              .push_back(t.units[u].layer);
  }
  Table table({"microbatch", "recomputed", "layers"});
  for (auto& [microbatch, parts] : chosen) {
    for (auto& [part, layers] : parts) {
      std::sort(layers.begin(), layers.end());
      table.add({std::to_string(microbatch), part, layer_expression(layers)});
    }
  }
  std::fputs(chosen.empty() ? "nothing has to be recomputed\n" : table.text({1, 2}).c_str(),
             stdout);
  if (o.output.empty()) return;
  Chosen plan;
  plan.add(t, choice.decisions);
  if (plan.empty()) throw Problem(o.file + ": fits without any recompute; no plan was written");
  std::int64_t layers = 0;
  std::set<std::int64_t> moe;
  for (const auto& u : t.units) {
    layers = std::max(layers, u.layer);
    if (u.part == "moe") moe.insert(u.layer);
  }
  write_file(o.output, to_yaml(plan,
                               "recoup explain " + o.file + " for " + show_count(limit) +
                                   " bytes: peak " + show_count(choice.prediction.peak) + "\n",
                               layers, moe));
}

}  // namespace

void add_explain(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("explain",
                                     "What holds the peak of a measured step, what to give up "
                                     "first, and what a budget would choose");
  command
      ->add_option(
          "file", o->file,
          "A timeline (hooks/budget/README.md), or the file of RECOUP_TRACE or RECOUP_PROFILE")
      ->required();
  command->add_option("--budget", o->budget, "Bytes: 74GiB, 500MB, 1048576");
  command
      ->add_option("--pipeline-stage", o->stage,
                   "Microbatches differ by at most one unit, offset by this stage")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 20));
  command->add_flag("--same", o->same, "The same in every microbatch, as a configuration says it");
  command->add_option("-o,--output", o->output, "Write the choice (--same) as a configuration")
      ->needs("--budget");
  command->callback([o] { explain(*o); });
}

}  // namespace recoup::cli
