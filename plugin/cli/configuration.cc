#include "configuration.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "command.h"
#include "recoup/policy/layers.h"
#include "recoup/policy/policy.h"
#include "table.h"

namespace recoup::cli {
namespace {

bool is_first_n(const std::set<std::int64_t>& layers) {
  return !layers.empty() && *layers.begin() == 1 &&
         *layers.rbegin() == static_cast<std::int64_t>(layers.size());
}

std::string expression(const std::set<std::int64_t>& layers) {
  return layer_expression({layers.begin(), layers.end()});
}

}  // namespace

void Chosen::add(const budget::Timeline& timeline, const budget::Decisions& decisions) {
  for (std::size_t u = 0; u < decisions.size(); ++u) {
    const auto& unit = timeline.units[u];
    const auto level = decisions[u];
    if (unit.microbatch != 0 || level == budget::Level::kKept) continue;
    const bool act = level == budget::Level::kActivation;
    layers[unit.part == "moe" && act ? "moe_act" : unit.part].insert(unit.layer);
    if (unit.part == "mlp" && act) mlp_activation.insert(unit.layer);
  }
}

std::string to_yaml(const Chosen& chosen, const std::string& comment, std::int64_t layers,
                    const std::set<std::int64_t>& moe) {
  std::ostringstream out;
  std::istringstream lines(comment);
  for (std::string line; std::getline(lines, line);) out << "# " << line << "\n";
  out << "recompute_granularity: selective\nrecompute_modules: [";
  bool first = true;
  for (const auto& [module, where] : chosen.layers)
    out << (first ? "" : ", ") << module, first = false;
  out << "]\n";
  std::set<std::int64_t> dense;
  for (std::int64_t n = 1; n <= layers; ++n) {
    if (moe.count(n) == 0) dense.insert(n);
  }
  for (const auto& [module, where] : chosen.layers) {
    // "The first N" where the others among them have no such module either.
    const auto n = *where.rbegin();
    auto of_first_n = where;
    if (module == "mlp" || module.rfind("moe", 0) == 0 || module == "shared_experts") {
      for (std::int64_t k = 1; k <= n; ++k) {
        if ((moe.count(k) > 0) == (module == "mlp")) of_first_n.insert(k);
      }
    }
    if (is_first_n(of_first_n)) {
      out << "recompute_" << module << "_num_layers: " << n << "\n";
    } else {
      out << "recompute_" << module << "_layers: " << expression(where) << "\n";
    }
  }
  if (!chosen.mlp_activation.empty()) {
    if (chosen.mlp_activation == chosen.layers.at("mlp")) {
      out << "mlp_recompute_level: activation\n";
    } else {
      out << "mlp_activation_layers: " << expression(chosen.mlp_activation) << "\n";
    }
  }
  const auto text = out.str();

  Model model;
  model.num_layers = model.stage_num_layers = layers;
  const auto policy =
      value_of(Policy::create(value_of(parse_config(text, "plan")), std::nullopt, model));
  for (std::int64_t n = 1; n <= layers; ++n) {
    const LayerInfo layer{n, moe.count(n) > 0, 0};
    for (std::size_t m = 0; m < kModuleCount; ++m) {
      const auto at = chosen.layers.find(kModules[m].name);
      const bool meant = at != chosen.layers.end() && at->second.count(n) > 0;
      if (policy.recomputes(static_cast<recoup::Module>(m), layer) != meant) {
        throw Problem("the plan cannot be written: the policy reads it otherwise for layer " +
                      std::to_string(n) + ", " + kModules[m].name);
      }
    }
    if (chosen.layers.count("mlp") > 0 && chosen.layers.at("mlp").count(n) > 0 &&
        (policy.mlp_level(layer) == MlpLevel::kActivation) !=
            (chosen.mlp_activation.count(n) > 0)) {
      throw Problem("the plan cannot be written: the policy reads another level for layer " +
                    std::to_string(n));
    }
  }
  return text;
}

void write_file(const std::string& path, const std::string& text) {
  errno = 0;
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file)
    throw Problem(path + ": cannot be written: " + std::strerror(errno != 0 ? errno : EIO));
}

}  // namespace recoup::cli
