// libFuzzer: configurations, as bytes, or (KEYS) by a mutator that knows the keys.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "recoup/policy/construction.h"
#include "recoup/policy/policy.h"

namespace recoup {
namespace {

// Like assert, in every build.
void require(bool holds, const char* what, const std::string& text) {
  if (holds) return;
  std::fprintf(stderr, "%s: %s\n", what, text.c_str());
  std::abort();
}

// What is said must be complete and safe to print.
void check_words(const std::string& text) {
  require(!text.empty() && text.size() < 4000, "no sentence", text);
  const bool safe = std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 && byte != 0x7F;
  });
  require(safe, "not safe to print", text);
}

void check_layer(const Policy& policy, const LayerInfo& layer) {
  const auto mlp = policy.recomputes(Module::kMlp, layer);
  const auto start =
      "Layer " + std::to_string(layer.number) + ": recompute_mlp=" + (mlp ? "True" : "False");
  const auto line = policy.describe(layer);
  check_words(line);
  require(line.compare(0, start.size(), start) == 0, "another beginning", line);
  const bool full = policy.config().granularity == Granularity::kFull;
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    if (!policy.recomputes(static_cast<Module>(m), layer)) continue;
    require(!full && policy.config().modules[m], "a module that is not listed", line);
    require(kModules[m].layers != (layer.is_moe ? RECOUP_DENSE_LAYER : RECOUP_MOE_LAYER),
            "a module that the layer does not have", line);
  }
  require(policy.full_group(layer) == 0 || full, "a group without full", line);
  if (!policy.problem_with(layer).empty()) check_words(policy.problem_with(layer));
}

void check_policy(const Config& config, const std::optional<Override>& override,
                  const Model& model) {
  const auto policy = Policy::create(config, override, model);
  if (!policy.ok()) return check_words(policy.error().text);
  for (const auto& notice : policy.value().notices()) check_words(notice);
  check_words(policy.value().summary());
  Construction construction(policy.value());
  for (std::int64_t n = 1; n <= 24; ++n) {
    const LayerInfo layer{n, n % 3 == 0, n > 6 ? 6 : 0, n % 3 == 0 ? 0 : n - n / 3};
    check_layer(policy.value(), layer);
    for (const auto& line : construction.add(layer)) check_words(line.text);
  }
}

void check(const std::string& yaml) {
  const auto config = parse_config(yaml, "x.yaml");
  if (!config.ok()) {
    check_words(config.error().text);
    return require(config.error().text.compare(0, 6, "x.yaml") == 0, "no file",
                   config.error().text);
  }
  Model able{24, 6};
  able.budget = true;
  able.num_mlps = 16;
  Model little{24, 24, std::vector<std::string>{"mlp"}, false, false, false, false};
  const Override override{12, "environment variable X"};
  for (const auto& model : {Model(), able, little}) {
    check_policy(config.value(), {}, model);
    check_policy(config.value(), override, model);
  }
}

}  // namespace
}  // namespace recoup

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  recoup::check(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}

#ifdef KEYS
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using Lines = std::vector<std::string>;
using Random = std::minstd_rand;

const std::string& one_of(const Lines& from, Random& random) {
  return from[random() % from.size()];
}

// A key's line, most often with a value that it may have.
std::string line(Random& random) {
  static const auto keys = recoup::config_keys();
  static const Lines values = {"selective", "full",        "block",
                               "uniform",   "activation",  "stage",
                               "mlp",       "[mlp]",       "[core_attn, mlp]",
                               "true",      "false",       "1",
                               "12",        "30",          "-1",
                               "last",      "last-2",      "2/3",
                               "1-24:2",    "!7",          "! 7",
                               "\"!7\"",    "'!7,1-12'",   "[1, 2, 5]",
                               "90%",       "74GiB",       "auto",
                               "null",      "~",           "",
                               "[]",        "{}",          "!!str 12",
                               "&a 12",     "*a",          "\"\\0\"",
                               "|\n  7",    ">-\n  mlp",   "[mlp, moe, moe_act]",
                               "012",       "1e3",         "99999999999999999999",
                               "-25",       "7-",          "all",
                               "\"\"",      "[\"!3\", 3]", "# comment"};
  const auto& key = keys[random() % keys.size()];
  return key.name + ": " + (random() % 2 == 0 ? key.example : one_of(values, random));
}

// A beginning that gives the other keys what they require.
Lines beginning(Random& random) {
  if (random() % 4 == 0) {
    return {"recompute_granularity: full", "recompute_method: block", "recompute_num_layers: 2"};
  }
  std::string modules;
  for (const auto& module : recoup::kModules) {
    if (random() % 2 == 0) modules += (modules.empty() ? "" : ", ") + std::string(module.name);
  }
  return {"recompute_granularity: selective", "recompute_modules: [" + modules + "]"};
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  Random random(seed);
  if (random() % 8 == 0) return LLVMFuzzerMutate(data, size, most);
  Lines lines(1);
  for (std::size_t i = 0; i < size; ++i) {
    if (data[i] == '\n') {
      lines.emplace_back();
    } else {
      lines.back() += static_cast<char>(data[i]);
    }
  }
  if (lines.back().empty()) lines.pop_back();
  static const Lines odd = {"---",    "...",       ",",        "- a",       "{",
                            "}",      "[mlp],",    "\t",       "%YAML 1.2", "? a",
                            "<<: *a", "!foo a: 1", "\"a\": 1", "# \xC3\xA9"};
  for (auto changes = 1 + random() % 3; changes > 0; --changes) {
    const auto at = lines.empty() ? 0 : random() % lines.size();
    switch (random() % 8) {
      case 0:
        lines = beginning(random);
        break;
      case 1:
        lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(at), one_of(odd, random));
        break;
      case 2:
        if (!lines.empty()) lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 3:
        if (!lines.empty()) lines.push_back(lines[at]);
        break;
      case 4:
        if (!lines.empty()) lines[at] = line(random);
        break;
      case 5:  // in braces, where a line's end is a comma
        if (!lines.empty()) {
          lines.front().insert(0, "{");
          for (auto& one : lines) one += ",";
          lines.back().back() = '}';
        }
        break;
      default:
        lines.push_back(line(random));
    }
  }
  std::string text;
  for (const auto& one : lines) text += one + "\n";
  const auto kept = std::min(text.size(), most);
  std::memcpy(data, text.data(), kept);
  return kept;
}
#endif
