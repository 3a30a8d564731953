// recoup plan: the configuration that fits a budget at the least recompute time.
#include <cmath>
#include <cstdio>

#include "bytes.h"
#include "configuration.h"
#include "model_options.h"
#include "recoup/budget/choose.h"

namespace recoup::cli {
namespace {

struct Options {
  ModelOptions model;
  std::string budget, output;
};

budget::Options same() {
  budget::Options options;
  options.same_in_microbatches = true;
  return options;
}

// Layers in the microbatches that are held at once: with more of them the choice takes minutes.
constexpr std::size_t kMostUnits = 4'096;

// Whether every stage fits with what may be recomputed.
bool fits(const models::Described& d, models::Recomputable which, std::int64_t budget) {
  if (!models::check(d.model, d.parallel).ok()) return false;
  for (std::int64_t s = 0; s < d.parallel.pipeline; ++s) {
    auto stage = models::stage_of(d, s, which);
    if (!stage.ok()) return false;
    auto model = budget::Model::from(std::move(stage.value().timeline));
    if (!model.ok() || model.value().predict(model.value().deepest()).peak > budget) return false;
  }
  return true;
}

// What would fit in place: more tensor parallelism, shorter sequences, smaller microbatches.
std::string what_would(const models::Described& d, models::Recomputable which,
                       std::int64_t budget) {
  std::string text;
  const auto offer = [&](const std::string& what) {
    text += (text.empty() ? "; would fit: " : ", or ") + what;
  };
  for (auto t = d.parallel.tensor * 2; t <= 64; t *= 2) {
    auto other = d;
    other.parallel.tensor = t;
    if (!fits(other, which, budget)) continue;
    offer("tensor_parallel " + std::to_string(t));
    break;
  }
  for (auto s = d.parallel.sequence / 2; s >= 256; s /= 2) {
    auto other = d;
    other.parallel.sequence = s;
    if (!fits(other, which, budget)) continue;
    offer("sequence " + std::to_string(s));
    break;
  }
  for (auto m = d.parallel.microbatch / 2; m >= 1; m /= 2) {
    auto other = d;
    other.parallel.microbatch = m;
    if (!fits(other, which, budget)) continue;
    offer("microbatch " + std::to_string(m));
    break;
  }
  return text;
}

void plan(const Options& o) {
  const auto limit = budget_bytes(o.budget);
  const auto d = o.model.read();
  const auto which = o.model.recomputable();
  Chosen chosen;
  std::set<std::int64_t> moe;
  const auto count = static_cast<std::int64_t>(d.model.layers.size());
  for (std::int64_t n = 1; n <= count; ++n) {
    if (d.model.layers[static_cast<std::size_t>(n - 1)].moe) moe.insert(n);
  }
  std::string notes = "recoup plan for " + show_count(limit) + " bytes (" +
                      show_bytes(static_cast<double>(limit)) + ") on each rank\n";
  std::int64_t largest = 0;
  for (const auto& stage : stages_of(o.model.model, d, which)) {
    const auto model = value_of(budget::Model::from(stage.timeline));
    if (model.units().size() > kMostUnits) {
      throw Problem(o.model.model + ": microbatches: " + d.parallel.schedule +
                    " holds so many of " + std::to_string(d.parallel.microbatches) +
                    " at once that there are " +
                    show_count(static_cast<std::int64_t>(model.units().size())) +
                    " parts to choose among, and " + std::to_string(kMostUnits) +
                    " is the most; plan for fewer");
    }
    const auto choice = budget::choose(model, limit, same());
    const auto plain = model.predict(model.kept());
    const auto where =
        d.parallel.pipeline > 1 ? "stage " + std::to_string(stage.number) + ": " : "";
    largest = std::max(largest, plain.peak);
    if (!choice.fits) {
      const auto least = budget::least_budget(model, same());
      const bool nothing = model.kept() == model.deepest();
      throw Problem(
          o.model.model + ": " + where + "no plan fits " + show_count(limit) + " bytes: " +
          (nothing ? "no layer has what may be recomputed (--modules), and without recompute it is "
                   : "the least budget is " + show_count(least) + " (" +
                         show_bytes(static_cast<double>(least)) + "), without recompute it is ") +
          show_count(plain.peak) + "; its peak: " +
          model.timeline().describe(choice.prediction.holder) + what_would(d, which, limit));
    }
    chosen.add(model.timeline(), choice.decisions);
    char cost[64];
    std::int64_t microbatches = 1;
    for (const auto& u : stage.timeline.units)
      microbatches = std::max(microbatches, u.microbatch + 1);
    std::snprintf(
        cost, sizeof cost, "%.3f ms of recompute a microbatch",
        static_cast<double>(choice.prediction.cost_ns) / 1e6 / static_cast<double>(microbatches));
    notes += where + show_count(plain.peak) + " bytes without recompute, " +
             show_count(choice.prediction.peak) + " planned at the peak, " + cost + "\n";
  }
  if (chosen.empty()) {
    throw Problem(o.model.model + ": fits without any recompute: the peak is " +
                  show_count(largest) + " of " + show_count(limit) +
                  " bytes; no plan is needed and none was written");
  }
  const auto text = to_yaml(chosen, notes, count, moe);
  if (!o.output.empty()) write_file(o.output, text);
  std::fputs(text.c_str(), stdout);
}

}  // namespace

void add_plan(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "plan", "The configuration that fits a budget at the least recompute time");
  o->model.add_to(*command, true);
  command->add_option("--budget", o->budget, "Bytes of each rank: 74GiB, 500MB, 1048576")
      ->required();
  command->add_option("-o,--output", o->output, "Write the configuration to this file too");
  command->callback([o] { plan(*o); });
}

}  // namespace recoup::cli
