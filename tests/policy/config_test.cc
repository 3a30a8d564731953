#include "recoup/policy/config.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace recoup {
namespace {

Config good(const std::string& yaml) {
  auto config = parse_config(yaml, "x.yaml");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().text);
  return config.ok() ? config.value() : Config();
}

std::string bad(const std::string& yaml) {
  const auto config = parse_config(yaml, "x.yaml");
  EXPECT_FALSE(config.ok()) << yaml;
  return config.ok() ? "" : config.error().text;
}

constexpr char kSelective[] = "recompute_granularity: selective\n";
constexpr char kMlp[] = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";

TEST(Config, EmptyFilesSetNothing) {
  for (const char* yaml : {"", "# a comment\n", "---\n", "recompute_mlp_num_layers: null\n"}) {
    EXPECT_EQ(good(yaml).granularity, Granularity::kNone);
  }
}

TEST(Config, FirstTwelve) {
  const auto config = good(std::string(kMlp) + "recompute_mlp_num_layers: 12\n");
  EXPECT_EQ(config.granularity, Granularity::kSelective);
  EXPECT_TRUE(config.has(Module::kMlp));
  EXPECT_FALSE(config.has(Module::kCoreAttn));
  EXPECT_TRUE(config.layers_of(Module::kMlp).contains(12, 24));
  EXPECT_FALSE(config.layers_of(Module::kMlp).contains(13, 24));
}

TEST(Config, UnsetNumberMeansAllLayers) {
  for (const char* rest : {"", "recompute_mlp_num_layers: ~\n"}) {
    EXPECT_TRUE(good(std::string(kMlp) + rest).layers_of(Module::kMlp).contains(1000, 0));
  }
}

TEST(Config, SelectiveDefaultsToCoreAttention) {
  EXPECT_TRUE(good(kSelective).has(Module::kCoreAttn));
  EXPECT_FALSE(good(kSelective).has(Module::kMlp));
}

TEST(Config, FullHasMegatronsMethods) {
  const auto config =
      good("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 3\n");
  EXPECT_EQ(config.granularity, Granularity::kFull);
  EXPECT_EQ(config.method, Method::kBlock);
  EXPECT_EQ(config.num_layers, 3);
}

TEST(Config, EveryModuleHasItsLayers) {
  const auto config = good(std::string(kSelective) +
                           "recompute_modules: [core_attn, layernorm]\n"
                           "recompute_core_attn_num_layers: 2\nrecompute_layernorm_layers: 2/3\n");
  EXPECT_FALSE(config.layers_of(Module::kCoreAttn).contains(3, 0));
  EXPECT_FALSE(config.layers_of(Module::kLayernorm).contains(3, 0));
  EXPECT_TRUE(config.layers_of(Module::kLayernorm).contains(5, 0));
}

// The three rules of the specification, each one error at the key's place.
TEST(Config, ThreeRules) {
  EXPECT_EQ(bad("recompute_mlp_num_layers: 12\n"),
            "x.yaml:1:1: recompute_mlp_num_layers: requires recompute_granularity: selective");
  EXPECT_EQ(bad("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 1\n"
                "recompute_mlp_num_layers: 12\n"),
            "x.yaml:4:1: recompute_mlp_num_layers: requires recompute_granularity: selective");
  EXPECT_EQ(bad(std::string(kSelective) + "recompute_modules: [core_attn]\n"
                                          "recompute_mlp_num_layers: 12\n"),
            "x.yaml:3:1: recompute_mlp_num_layers: requires \"mlp\" in recompute_modules");
  EXPECT_EQ(bad(std::string(kMlp) + "recompute_mlp_num_layers: 0\n"),
            "x.yaml:3:1: recompute_mlp_num_layers: must be >= 1, not 0");
  EXPECT_EQ(bad(std::string(kMlp) + "  \nrecompute_mlp_num_layers: -3\n"),
            "x.yaml:4:1: recompute_mlp_num_layers: must be >= 1, not -3");
}

TEST(Config, WrongTypesSayWhatIsAllowed) {
  const std::string key = "recompute_mlp_num_layers: ";
  for (const auto& [value, shown] : std::vector<std::pair<std::string, std::string>>{
           {"twelve", "\"twelve\""},
           {"1.5", "\"1.5\""},
           {"\"12\"", "the text \"12\""},
           {"012", "\"012\""},
           {"0x10", "\"0x10\""},
           {"true", "\"true\""},
           {"[1]", "a list"},
           {"{a: 1}", "a mapping"},
           {"1e3", "\"1e3\""},
           {"99999999999999999999", "\"99999999999999999999\""}}) {
    EXPECT_EQ(bad(kMlp + key + value),
              "x.yaml:3:1: recompute_mlp_num_layers: must be an integer "
              ">= 1, not " +
                  shown);
  }
  EXPECT_EQ(bad("recompute_granularity: selectiv\n"),
            "x.yaml:1:1: recompute_granularity: must be selective or full, not \"selectiv\"; did "
            "you mean \"selective\"?");
  EXPECT_NE(bad(std::string(kSelective) + "recompute_modules: mlp\n").find("must be a list of"),
            std::string::npos);
  EXPECT_NE(bad(std::string(kMlp) + "recompute_mlp_layers: 5-2\n")
                .find("x.yaml:3:1: recompute_mlp_layers: \"5-2\" is no layer expression"),
            std::string::npos);
  EXPECT_NE(bad("distribute_saved_activations: 1\n").find("must be true or false"),
            std::string::npos);
}

TEST(Config, UnknownKeysAndModulesGetAHint) {
  EXPECT_EQ(bad("recompute_mlp_num_layer: 1\n"),
            "x.yaml:1:1: recompute_mlp_num_layer: unknown key; did you mean "
            "\"recompute_mlp_num_layers\"?");
  EXPECT_NE(bad("batch: 1\n").find("x.yaml:1:1: batch: unknown key; allowed: "), std::string::npos);
  const auto text = bad(std::string(kSelective) + "recompute_modules: [core_attn, mpl]\n");
  EXPECT_EQ(text.find("x.yaml:2:32: recompute_modules: \"mpl\" is no module to recompute; allowed: "
                      "core_attn, mlp, "),
            0u);
  for (const auto& module : kModules) EXPECT_NE(text.find(module.name), std::string::npos);
  EXPECT_NE(text.find("; did you mean \"mlp\"?"), std::string::npos);
}

TEST(Config, DuplicatesNameBothPlaces) {
  EXPECT_EQ(bad(std::string(kSelective) + "recompute_granularity: full\n"),
            "x.yaml:2:1: recompute_granularity: set twice, first at x.yaml:1:1");
  EXPECT_EQ(bad("recompute_modules: null\nrecompute_modules: null\n"),
            "x.yaml:2:1: recompute_modules: set twice, first at x.yaml:1:1");
  EXPECT_EQ(bad(std::string(kSelective) + "recompute_modules: [mlp, mlp]\n"),
            "x.yaml:2:26: recompute_modules: \"mlp\" stands in the list twice");
  EXPECT_NE(bad(std::string(kMlp) + "recompute_mlp_num_layers: 1\nrecompute_mlp_layers: 2\n")
                .find("allowed is one of the two"),
            std::string::npos);
}

TEST(Config, FullAndSelectiveDoNotMix) {
  EXPECT_NE(bad("recompute_granularity: full\nrecompute_num_layers: 1\n")
                .find("full requires recompute_method (uniform or block)"),
            std::string::npos);
  EXPECT_NE(bad("recompute_granularity: full\nrecompute_method: block\n")
                .find("full requires recompute_num_layers (an integer >= 1)"),
            std::string::npos);
  EXPECT_NE(bad(std::string(kMlp) + "recompute_method: block\n")
                .find("recompute_method: requires recompute_granularity: full"),
            std::string::npos);
  EXPECT_NE(bad("recompute_modules: [mlp]\n")
                .find("recompute_modules: requires recompute_granularity: selective"),
            std::string::npos);
  EXPECT_NE(bad(std::string(kSelective) + "mlp_recompute_level: full\n")
                .find("requires \"mlp\" in recompute_modules"),
            std::string::npos);
}

TEST(Config, LevelsAreOneOrEachLayers) {
  EXPECT_NE(bad(std::string(kMlp) + "mlp_recompute_level: full\nmlp_activation_layers: 1\n")
                .find("x.yaml:4:1: mlp_activation_layers: set beside mlp_recompute_level"),
            std::string::npos);
  EXPECT_TRUE(
      good(std::string(kMlp) + "mlp_activation_layers: 2-3\n").mlp_activation.contains(3, 0));
}

TEST(Config, BrokenYamlHasAPlace) {
  EXPECT_EQ(bad("recompute_modules: [mlp\n").find("x.yaml:2:1: not valid YAML"), 0u);
  EXPECT_NE(bad("- a\n- b\n").find("must be a mapping"), std::string::npos);
  EXPECT_NE(bad("a\n").find("must be a mapping"), std::string::npos);
  EXPECT_NE(bad("recompute_modules: null\n---\na: 1\n").find("a second YAML document"),
            std::string::npos);
  EXPECT_NE(bad("? [a]\n: 1\n").find("a key must be a word"), std::string::npos);
}

TEST(Config, Files) {
  EXPECT_NE(load_config("/no/such.yaml").error().text.find("/no/such.yaml: cannot be read"),
            std::string::npos);
  EXPECT_FALSE(load_config("/").ok());
  const std::string path = testing::TempDir() + "recoup_config_test.yaml";
  std::ofstream(path).close();
  EXPECT_TRUE(load_config(path).ok());  // empty
  std::ofstream(path) << kMlp << "recompute_mlp_num_layers: x\n";
  EXPECT_EQ(load_config(path).error().text.find(path + ":3:1: recompute_mlp_num_layers: "), 0u);
  std::remove(path.c_str());
}

}  // namespace
}  // namespace recoup
