// What is allowed and does less than it seems to is said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "recoup/policy/policy.h"

namespace recoup {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr char kSelective[] = "recompute_granularity: selective\n";
constexpr char kMlp[] = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";

Policy policy(const std::string& yaml, std::optional<Override> override = {},
              Model model = {24, 24}) {
  auto config = parse_config(yaml, "x.yaml");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().text);
  auto p = Policy::create(config.value(), std::move(override), model);
  EXPECT_TRUE(p.ok()) << (p.ok() ? "" : p.error().text);
  return p.value();
}
std::vector<std::string> mlp(const std::string& rest, std::optional<Override> override = {},
                             Model model = {24, 24}) {
  return policy(kMlp + rest, std::move(override), model).notices();
}
std::string refusal(const std::string& yaml, Model model = {24, 24},
                    std::optional<Override> override = {}) {
  const auto p = Policy::create(parse_config(yaml, "x.yaml").value(), std::move(override), model);
  EXPECT_FALSE(p.ok()) << yaml;
  return p.ok() ? "" : p.error().text;
}

TEST(Notices, TermsThatNameNoLayer) {
  const std::string key = "recompute_mlp_layers: ";
  EXPECT_THAT(
      mlp(key + "-25\n"),
      ElementsAre("x.yaml:3:1: recompute_mlp_layers: \"-25\" names no layer: there are 24"));
  EXPECT_THAT(
      mlp(key + "last-99\n"),
      ElementsAre("x.yaml:3:1: recompute_mlp_layers: \"last-99\" names no layer: there are 24"));
  EXPECT_THAT(mlp(key + "1-3,last-7-12, last-99\n"),
              ElementsAre("x.yaml:3:1: recompute_mlp_layers: \"last-7-12\", \"last-99\" name no "
                          "layer: there are 24"));
  EXPECT_THAT(
      mlp(key + "\"1-3,!last-30\"\n"),
      ElementsAre("x.yaml:3:1: recompute_mlp_layers: \"!last-30\" names no layer: there are "
                  "24"));
  EXPECT_THAT(mlp(key + "20-30\n"),
              ElementsAre("x.yaml:3:1: recompute_mlp_layers: names layer 30, but there are 24"));
  EXPECT_THAT(mlp(key + "\"1-12,!1-12\"\n"),
              ElementsAre("x.yaml:3:1: recompute_mlp_layers: leaves no layer of the 24"));
  EXPECT_THAT(mlp(key + "-99,-98,-97,-96,-95\n"),
              ElementsAre("x.yaml:3:1: recompute_mlp_layers: \"-99\", \"-98\", \"-97\" and 2 more "
                          "name no layer: there are 24"));
  EXPECT_THAT(mlp(key + "last-99-last:33\n"), IsEmpty());  // 24 - 99 + 3 * 33
  EXPECT_THAT(mlp(key + "-23\n"), IsEmpty());
  EXPECT_THAT(mlp(key + "last-23\n"), IsEmpty());
}

TEST(Notices, LevelsOfLayersThatRecomputeNothing) {
  EXPECT_THAT(mlp("recompute_mlp_num_layers: 6\nmlp_activation_layers: 7-12\n"),
              ElementsAre("x.yaml:4:1: mlp_activation_layers: does nothing in layers 7-12, whose "
                          "MLP is not recomputed (x.yaml:3:1: recompute_mlp_num_layers)"));
  EXPECT_THAT(mlp("mlp_activation_layers: 20-30\n"),
              ElementsAre("x.yaml:3:1: mlp_activation_layers: names layer 30, but there are 24"));
  EXPECT_THAT(mlp("recompute_mlp_num_layers: 6\nmlp_activation_layers: 7-12\n", {}, {}),
              ElementsAre("x.yaml:4:1: mlp_activation_layers: does nothing in layers 7-12, whose "
                          "MLP is not recomputed (x.yaml:3:1: recompute_mlp_num_layers)"));
  EXPECT_THAT(mlp("recompute_mlp_num_layers: 6\nmlp_activation_layers: 1-6\n"), IsEmpty());
  EXPECT_THAT(mlp("recompute_mlp_num_layers: 6\nmlp_recompute_level: activation\n"), IsEmpty());
}

TEST(Notices, EmptyListsAndValues) {
  EXPECT_THAT(policy("recompute_granularity: selective\nrecompute_modules: []\n").notices(),
              ElementsAre("x.yaml:2:1: recompute_modules: the list is empty: nothing is "
                          "recomputed"));
  EXPECT_THAT(mlp("recompute_mlp_num_layers:\n"),
              ElementsAre("x.yaml:3:1: recompute_mlp_num_layers: has no value, which leaves it "
                          "unset: every layer"));
  EXPECT_THAT(policy("recompute_granularity:\n").notices(),
              ElementsAre("x.yaml:1:1: recompute_granularity: has no value, which leaves it unset: "
                          "nothing is recomputed"));
  EXPECT_THAT(policy("{recompute_granularity: , recompute_modules: }").notices().size(), 2);
  EXPECT_THAT(mlp("recompute_mlp_num_layers: null\nmlp_recompute_level: ~\n"), IsEmpty());
}

TEST(Notices, BlameTheSourceThatSetTheValue) {
  EXPECT_THAT(mlp("recompute_mlp_num_layers: 3\n", Override{30, "environment variable X"}),
              ElementsAre("environment variable X=30 decides which layers recompute their MLP and "
                          "OVERRIDES x.yaml:3:1: recompute_mlp_num_layers",
                          "environment variable X: names layer 30, but there are 24"));
  EXPECT_THAT(mlp("recompute_mlp_layers: -99\n", Override{3, "X"}).size(), 1u);
  EXPECT_THAT(mlp("mlp_activation_layers: 3-4\n", Override{3, "X"}).back(),
              "x.yaml:3:1: mlp_activation_layers: does nothing in layer 4, whose MLP is not "
              "recomputed (X)");
}

TEST(Notices, ModelsOfMoeLayersOnlyHaveNoMlp) {
  Model model{24, 24};
  model.num_mlps = 0;
  EXPECT_THAT(mlp("", {}, model),
              ElementsAre("x.yaml:2:1: recompute_modules: every layer of this model is an MoE "
                          "layer: no MLP is recomputed as \"mlp\""));
  model.num_mlps = 12;
  EXPECT_THAT(mlp("", {}, model), IsEmpty());
}

TEST(Notices, FullOfMoreLayersThanThereAre) {
  const std::string full = "recompute_granularity: full\nrecompute_method: block\n";
  EXPECT_THAT(policy(full + "recompute_num_layers: 30\n").notices(),
              ElementsAre("x.yaml:3:1: recompute_num_layers: is 30, but there are 24 layers in the "
                          "stage"));
  EXPECT_THAT(policy(full + "recompute_num_layers: 24\n").notices(), IsEmpty());
}

TEST(Refusals, TheDefaultThatAHostDoesNotHaveIsNamed) {
  Model model{24, 24, std::vector<std::string>{"mlp", "layernorm"}};
  EXPECT_EQ(refusal(kSelective, model),
            "x.yaml:1:1: recompute_granularity: selective without recompute_modules means "
            "[core_attn], and this host cannot recompute \"core_attn\"; write recompute_modules: "
            "[mlp]");
  EXPECT_EQ(refusal("recompute_granularity: selective\nrecompute_modules: [moe]\n", model),
            "x.yaml:2:1: recompute_modules: this host cannot recompute \"moe\"; it can recompute "
            "mlp or layernorm");
  EXPECT_EQ(refusal(kSelective, model, Override{3, "X"}).find("x.yaml:1:1: "), 0u);
}

TEST(Refusals, ScopesThatCountNothing) {
  const std::string needs =
      ": recompute_layer_scope: requires a key that numbers layers, such as "
      "recompute_mlp_num_layers";
  EXPECT_EQ(refusal(std::string(kMlp) + "recompute_layer_scope: stage\n"), "x.yaml:3:1" + needs);
  EXPECT_EQ(refusal(std::string(kSelective) + "recompute_core_attn_num_layers: 2\n" +
                    "recompute_layer_scope: mlp\n"),
            "x.yaml:3:1" + needs);
  EXPECT_THAT(mlp("recompute_layer_scope: stage\n", Override{3, "X"}).size(), 1u);
  EXPECT_THAT(mlp("recompute_layer_scope: stage\nmlp_activation_layers: 2\n"), IsEmpty());
}

TEST(Refusals, WhatCountsFromTheEndSaysWhichNumberIsMissing) {
  const std::string last = std::string(kMlp) + "recompute_mlp_layers: last\n";
  EXPECT_EQ(refusal(last, {}),
            "x.yaml:3:1: recompute_mlp_layers: counts from the last layer, but this host does not "
            "say how many layers there are (its author must set num_layers in recoup_host_v1, "
            "HostOptions)");
  EXPECT_NE(refusal(last + "recompute_layer_scope: stage\n", {24}).find("set stage_num_layers in"),
            std::string::npos);
  EXPECT_NE(refusal(last + "recompute_layer_scope: mlp\n")
                .find("how many MLPs there are (its "
                      "author must set num_mlps in"),
            std::string::npos);
}

TEST(Scope, MlpCountsMlps) {
  Model model{24, 24};
  model.num_mlps = 12;
  const auto p = policy(std::string(kSelective) +
                            "recompute_modules: [core_attn, mlp]\nrecompute_mlp_layers: -1\n"
                            "recompute_core_attn_num_layers: 3\nrecompute_layer_scope: mlp\n",
                        {}, model);
  EXPECT_TRUE(p.recomputes(Module::kMlp, {21, false, 0, 11}));
  EXPECT_FALSE(p.recomputes(Module::kMlp, {23, false, 0, 12}));
  EXPECT_FALSE(p.recomputes(Module::kMlp, {2, true}));
  EXPECT_TRUE(p.recomputes(Module::kCoreAttn, {3, false, 0, 2}));
  EXPECT_FALSE(p.recomputes(Module::kCoreAttn, {4, true}));
  EXPECT_EQ(p.problem_with({2, true}), "");
  EXPECT_EQ(p.problem_with({3, false, 0, 2}), "");
  EXPECT_EQ(p.problem_with({3}),
            "x.yaml:5:1: recompute_layer_scope: layer 3 does not say which of the model's MLPs it "
            "has; allowed are global and stage (the host's author must set "
            "recoup_layer_v1.mlp_number, LayerInfo::mlp_number)");
  EXPECT_FALSE(p.recomputes(Module::kMlp, {3}));
  EXPECT_EQ(policy(kMlp).problem_with({3}), "");
}

}  // namespace
}  // namespace recoup
