#include "model_options.h"

#include <algorithm>
#include <cstdio>

#include "text.h"

namespace recoup::cli {

void ModelOptions::add_to(CLI::App& command, bool required) {
  auto* file = command.add_option(
      "--model", model,
      "Hugging Face's config.json, Megatron-LM's arguments, or recoup's model file");
  if (required) file->required();
  command.add_option("--host", host, "Whose abilities limit what may be recomputed")
      ->check(CLI::IsMember(host_names()))
      ->capture_default_str();
  std::vector<std::string> names;
  for (const auto& m : kModules) names.emplace_back(m.name);
  command.add_option("--modules", modules, "What may be recomputed (default: mlp)")
      ->check(CLI::IsMember(names));
  command.add_option("--levels", levels, "The MLP's levels that may be chosen")
      ->check(CLI::IsMember({"both", "full", "activation"}))
      ->capture_default_str();
  for (const auto& option : models::option_keys()) {
    std::string flag = option.key;
    std::replace(flag.begin(), flag.end(), '_', '-');
    command.add_option_function<std::string>(
        "--" + flag, [this, key = std::string(option.key)](const std::string& v) { set[key] = v; },
        option.meaning);
  }
}

models::Described ModelOptions::read() const {
  auto described = value_of(models::read_model(model));
  const bool says_sequence = described.parallel.sequence > 0 || set.count("sequence") > 0;
  // In the order of the table, so that stages and pipeline_parallel meet in one order.
  for (const auto& option : models::option_keys()) {
    const auto at = set.find(option.key);
    if (at == set.end()) continue;
    auto done = models::set_option(described, at->first, at->second);
    if (!done.ok()) {
      auto text = done.error().text;
      std::replace(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at->first.size()), '_',
                   '-');
      throw Problem("--" + text);
    }
  }
  auto& p = described.parallel;
  if (!says_sequence && described.model.sequence > 0) {
    p.sequence = std::min<std::int64_t>(described.model.sequence, 8192);
    described.model.assumed.push_back("sequences of " + std::to_string(p.sequence) +
                                      " tokens (--sequence says otherwise)");
  }
  if (p.pipeline > 1 && set.count("microbatches") == 0 && p.microbatches == 1) {
    p.microbatches = 2 * p.pipeline;
    described.model.assumed.push_back(
        std::to_string(p.microbatches) +
        " microbatches, twice the stages (--microbatches says otherwise)");
  }
  const auto ok = models::check(described.model, p);
  if (!ok.ok()) throw Problem(model + ": " + ok.error().text);
  if (p.pipeline > 1 && p.stages.empty()) {
    const auto stages = models::stage_layers(described.model, p);
    if (*std::min_element(stages.begin(), stages.end()) !=
        *std::max_element(stages.begin(), stages.end())) {
      std::string list;
      for (const auto n : stages) list += (list.empty() ? "" : ",") + std::to_string(n);
      described.model.assumed.push_back("stages of " + list + " layers (--stages says otherwise)");
    }
  }
  for (const auto& assumed : described.model.assumed) {
    std::fprintf(stderr, "assumed: %s\n", text::printable(assumed, 1000).c_str());
  }
  return described;
}

models::Recomputable ModelOptions::recomputable() const {
  const auto& row = *find_host(host);
  models::Recomputable which = 0;
  const auto wanted = modules.empty() ? std::vector<std::string>{"mlp"} : modules;
  for (const auto& name : wanted) {
    for (const auto& m : kModules) {
      if (name != m.name) continue;
      if (!row.has(m.bit)) {
        throw Problem("--modules: the host " + host + " cannot recompute " + name);
      }
      which |= m.bit;
    }
  }
  if (levels != "full" && (which & RECOUP_MLP) != 0) {
    if (row.has(RECOUP_MLP_ACTIVATION)) {
      which |= RECOUP_MLP_ACTIVATION;
    } else if (levels == "activation") {
      throw Problem("--levels: the host " + host + " cannot recompute the activation alone");
    }
  }
  return which;
}

std::vector<models::Stage> stages_of(const std::string& file, const models::Described& described,
                                     models::Recomputable which) {
  std::vector<models::Stage> stages;
  for (std::int64_t s = 0; s < described.parallel.pipeline; ++s) {
    auto stage = models::stage_of(described, s, which);
    if (!stage.ok()) throw Problem(file + ": " + stage.error().text);
    stages.push_back(std::move(stage.value()));
  }
  return stages;
}

}  // namespace recoup::cli
