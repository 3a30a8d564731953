// The rows of the keys against what they say: requirements, examples and the README's table.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "recoup/policy/config.h"

namespace recoup {
namespace {

using Needs = ConfigKey::Needs;

// The lines that `key` needs beside its own.
std::string required(const ConfigKey& key) {
  switch (key.needs) {
    case Needs::kNothing:
      return {};
    case Needs::kFull:
      return "recompute_granularity: full\n" + std::string(key.name == "recompute_method"
                                                               ? "recompute_num_layers: 2\n"
                                                               : "recompute_method: block\n");
    case Needs::kModule:
      return std::string("recompute_granularity: selective\nrecompute_modules: [") +
             kModules[key.module].name + "]\n";
    default:
      return "recompute_granularity: selective\n";
  }
}

std::string line(const ConfigKey& key) { return key.name + ": " + key.example + "\n"; }

std::string refusal(const std::string& yaml) {
  const auto config = parse_config(yaml, "x.yaml");
  return config.ok() ? "accepted" : config.error().text;
}

TEST(Keys, AreDistinctAndDocumented) {
  std::map<std::string, int> names;
  for (const auto& key : config_keys()) {
    EXPECT_EQ(++names[key.name], 1) << key.name;
    for (const auto& text : {key.value, key.unset, key.example, key.meaning}) {
      EXPECT_FALSE(text.empty()) << key.name;
    }
    EXPECT_EQ(key.requirement().empty(), key.needs == Needs::kNothing) << key.name;
  }
}

TEST(Keys, EachIsAcceptedWithWhatItRequires) {
  for (const auto& key : config_keys()) {
    const auto config = parse_config(required(key) + line(key), "x.yaml");
    ASSERT_TRUE(config.ok()) << config.error().text;
    EXPECT_EQ(config.value().where.count(key.name), 1u) << key.name;
    EXPECT_TRUE(config.value().notices.empty()) << key.name;
  }
}

// No key can be without effect.
TEST(Keys, EachIsRefusedWithoutWhatItRequires) {
  for (const auto& key : config_keys()) {
    if (key.needs == Needs::kNothing) continue;
    EXPECT_EQ(refusal(line(key)).find("x.yaml:1:1: " + key.name + ": requires "), 0u)
        << key.name << ": " << refusal(line(key));
  }
  EXPECT_EQ(refusal("distribute_saved_activations: true\n"),
            "x.yaml:1:1: distribute_saved_activations: requires recompute_granularity");
  for (const char* scope : {"global", "stage", "mlp"}) {
    EXPECT_EQ(refusal(std::string("recompute_layer_scope: ") + scope + "\n"),
              "x.yaml:1:1: recompute_layer_scope: requires recompute_granularity: selective");
    EXPECT_EQ(refusal("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: "
                      "2\nrecompute_layer_scope: " +
                      std::string(scope)),
              "x.yaml:4:1: recompute_layer_scope: requires recompute_granularity: selective");
  }
}

TEST(Keys, EachIsRefusedBesideWhatItExcludes) {
  std::map<std::string, ConfigKey> rows;
  for (const auto& key : config_keys()) rows[key.name] = key;
  for (const auto& [name, key] : rows) {
    for (const auto& other : key.excludes) {
      ASSERT_EQ(rows.count(other), 1u) << other;
      const auto& needs = key.needs == Needs::kModule ? key : rows[other];
      EXPECT_NE(refusal(required(needs) + line(key) + line(rows[other]))
                    .find(name + ": set beside " + other + "; allowed is one of the two"),
                std::string::npos)
          << name;
    }
  }
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// A row of the README: a module's own keys stand there once, with <module> for its name.
std::string readme_row(const ConfigKey& key, bool own) {
  std::string beside;
  for (const auto& other : key.excludes) beside += (beside.empty() ? "`" : ", `") + other + "`";
  auto row = "| `" + key.name + "` | " + key.value + " | " + key.unset + " | " +
             (key.needs == Needs::kNothing ? "" : "`" + key.requirement() + "`") + " | " + beside +
             " | `" + key.name + ": " + key.example + "` | " + key.meaning + " |";
  if (own) {
    const std::string name = kModules[key.module].name;
    row = replaced(row, "recompute_" + name + "_", "recompute_<module>_");
    row = replaced(row, "\"" + name + "\"", "\"<module>\"");
  }
  return row;
}

TEST(Keys, TheReadmesTableIsTheRows) {
  std::ifstream file(std::string(RECOUP_SOURCE) + "/hooks/policy/README.md");
  std::stringstream content;
  content << file.rdbuf();
  ASSERT_FALSE(content.str().empty());
  std::map<std::string, int> in_readme;
  std::string text;
  while (std::getline(content, text)) {
    if (text.rfind("| `recompute_", 0) == 0 || text.rfind("| `mlp_", 0) == 0 ||
        text.rfind("| `distribute_", 0) == 0) {
      ++in_readme[text];
    }
  }
  std::map<std::string, int> rows;
  for (const auto& key : config_keys()) {
    const bool own = key.needs == Needs::kModule &&
                     key.name.rfind(std::string("recompute_") + kModules[key.module].name, 0) == 0;
    rows[readme_row(key, own)] = 1;
  }
  for (const auto& [row, times] : rows) EXPECT_EQ(in_readme[row], times) << row;
  EXPECT_EQ(in_readme.size(), rows.size());
}

TEST(Keys, ReadyFilesAreValid) {
  int files = 0;
  for (const auto& file :
       std::filesystem::directory_iterator(std::string(RECOUP_SOURCE) + "/configs")) {
    if (file.path().extension() != ".yaml") continue;
    ++files;
    const auto config = load_config(file.path());
    ASSERT_TRUE(config.ok()) << config.error().text;
    EXPECT_NE(config.value().granularity, Granularity::kNone) << file.path();
    EXPECT_TRUE(config.value().notices.empty()) << file.path();
  }
  EXPECT_GE(files, 8);
}

}  // namespace
}  // namespace recoup
