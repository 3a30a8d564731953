// recoup report: what a sweep of runs measured, beside what the closed forms predict for it.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "bytes.h"
#include "file.h"
#include "model_options.h"
#include "table.h"

namespace recoup::cli {
namespace {

using Json = nlohmann::json;

struct Options {
  ModelOptions model;
  std::string file;
};

constexpr std::size_t kLargestSweep = std::size_t{1} << 24;
constexpr double kMost = 1e18;

struct Row {
  std::string name;
  bool equal = false;
  std::int64_t saved = 0, peak = 0;
  double step = 0;
  std::optional<std::int64_t> n;  // of "N = n"
};

std::vector<Row> read_sweep(const std::string& file) {
  const auto text = value_of(read_file(file, kLargestSweep, "sweep.json"));
  bool deep = false;
  const auto json = Json::parse(
      text,
      [&](int depth, Json::parse_event_t, Json&) {
        deep = deep || depth > 8;
        return !deep;
      },
      false);
  if (json.is_discarded() || deep || !json.is_array() || json.empty()) {
    throw Problem(file + ": is no sweep.json, a list of measured settings (examples/gpt/sweep.py)");
  }
  std::vector<Row> rows;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const auto where = file + ": [" + std::to_string(i) + "]: ";
    const auto value = [&](const char* key) -> const Json& {
      if (!json[i].is_object() || !json[i].contains(key))
        throw Problem(where + key + ": is missing");
      return json[i][key];
    };
    const auto number = [&](const char* key) {
      const auto& v = value(key);
      if (!v.is_number() || !(v.get<double>() >= 0) || !(v.get<double>() <= kMost)) {
        throw Problem(where + key + ": must be a number from 0 on");
      }
      return v.get<double>();
    };
    Row row;
    if (!value("recompute").is_string()) throw Problem(where + "recompute: must be a text");
    if (!value("equal").is_boolean()) throw Problem(where + "equal: must be true or false");
    row.name = value("recompute").get<std::string>();
    row.equal = value("equal").get<bool>();
    row.saved = static_cast<std::int64_t>(number("saved by forward"));
    row.peak = static_cast<std::int64_t>(number("peak"));
    row.step = number("step time");
    if (const std::string first = "N = "; row.name.compare(0, first.size(), first) == 0) {
      const auto digits = row.name.substr(first.size());
      if (!digits.empty() && digits.size() < 7 &&
          digits.find_first_not_of("0123456789") == std::string::npos) {
        row.n = std::stoll(digits);
      }
    } else if (row.name == "plain") {
      row.n = 0;
    }
    rows.push_back(row);
  }
  return rows;
}

std::string off(double predicted, double measured) {
  char text[32];
  std::snprintf(text, sizeof text, "%+.2f %%",
                measured > 0 ? 100 * (predicted - measured) / measured : 0);
  return text;
}

void report(const Options& o) {
  const auto rows = read_sweep(o.file);
  std::optional<models::Described> described;
  std::optional<models::Stage> stage;
  std::optional<budget::Model> core;
  if (o.model.model.empty() && !o.model.set.empty())
    throw Problem("--model: is needed for the rest");
  if (!o.model.model.empty()) {
    described = o.model.read();
    if (described->parallel.pipeline != 1) {
      throw Problem(o.model.model + ": pipeline_parallel: a sweep measures one stage");
    }
    stage = stages_of(o.model.model, *described, o.model.recomputable())[0];
    core = value_of(budget::Model::from(stage->timeline));
  }
  Table table(core ? std::vector<std::string>{"recompute", "equal", "step time", "saved by forward",
                                              "predicted", "off", "peak", "predicted", "off"}
                   : std::vector<std::string>{"recompute", "equal", "step time", "saved by forward",
                                              "peak"});
  bool equal = true;
  for (const auto& row : rows) {
    equal = equal && row.equal;
    char step[32];
    std::snprintf(step, sizeof step, "x%.3f", row.step);
    std::vector<std::string> cells{row.name, row.equal ? "yes" : "NO", step, show_count(row.saved)};
    if (!core) {
      cells.push_back(show_count(row.peak));
    } else if (row.n && *row.n <= stage->layers) {
      double saved = static_cast<double>(stage->activations + stage->logits);
      for (std::int64_t n = 0; n < *row.n; ++n) {
        const auto bytes =
            models::layer_bytes(described->model, described->parallel, static_cast<std::size_t>(n));
        saved -= bytes.mlp_full();
      }
      // A sweep counts from a step's begin: without weights and what the optimizer keeps.
      const auto peak = core->predict(models::first_layers(*stage, *core, *row.n)).peak -
                        stage->weights - stage->optimizer;
      cells.insert(cells.end(),
                   {show_count(std::llround(saved)), off(saved, static_cast<double>(row.saved)),
                    show_count(row.peak), show_count(peak),
                    off(static_cast<double>(peak), static_cast<double>(row.peak))});
    } else {
      cells.insert(cells.end(), {"-", "-", show_count(row.peak), "-", "-"});
    }
    table.add(cells);
  }
  std::fputs(table.text({1}).c_str(), stdout);
  if (!equal) throw Problem(o.file + ": losses differ from those without recompute");
}

}  // namespace

void add_report(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "report", "What a sweep of runs measured, beside what --model predicts for it");
  command->add_option("sweep", o->file, "The sweep.json of examples/gpt/sweep.py -o")->required();
  o->model.add_to(*command, false);
  command->callback([o] { report(*o); });
}

}  // namespace recoup::cli
