#include "recoup/policy/policy.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace recoup {
namespace {

constexpr char kVariable[] = "RECOUP_RECOMPUTE_MLP_NUM_LAYERS";

Config config(const std::string& yaml) { return parse_config(yaml, "x.yaml").value(); }
Config mlp(const std::string& rest = "") {
  return config("recompute_granularity: selective\nrecompute_modules: [core_attn, mlp]\n" + rest);
}
Policy policy(Config c, std::optional<Override> o = {}, Model m = {24, 24, {}, true}) {
  auto p = Policy::create(std::move(c), std::move(o), m);
  EXPECT_TRUE(p.ok()) << (p.ok() ? "" : p.error().text);
  return p.value();
}
LayerInfo layer(std::int64_t n) { return {n, false, 0}; }
LayerInfo moe(std::int64_t n) { return {n, true, 0}; }

TEST(Policy, FirstTwelveOfTwentyFour) {
  const auto p = policy(mlp("recompute_mlp_num_layers: 12\n"));
  for (std::int64_t n = 1; n <= 24; ++n) {
    EXPECT_EQ(p.recomputes(Module::kMlp, layer(n)), n <= 12) << n;
    EXPECT_TRUE(p.recomputes(Module::kCoreAttn, layer(n))) << n;  // on all layers
    EXPECT_FALSE(p.recomputes(Module::kMlp, moe(n))) << n;
    EXPECT_FALSE(p.recomputes(Module::kLayernorm, layer(n))) << n;
  }
  EXPECT_EQ(p.describe(layer(12)), "Layer 12: recompute_mlp=True, level full, also core_attn");
  EXPECT_EQ(p.describe(layer(13)), "Layer 13: recompute_mlp=False, also core_attn");
  EXPECT_TRUE(p.notices().empty());
}

TEST(Policy, UnsetMeansAllLayers) {
  for (std::int64_t n = 1; n <= 24; ++n) {
    EXPECT_TRUE(policy(mlp()).recomputes(Module::kMlp, layer(n)));
    EXPECT_FALSE(policy(Config()).recomputes(Module::kMlp, layer(n)));
  }
}

TEST(Policy, MoeModulesAreMoeLayersOnly) {
  const auto p =
      policy(config("recompute_granularity: selective\nrecompute_modules: [moe, moe_act, "
                    "shared_experts, mlp]\n"));
  for (const auto m : {Module::kMoe, Module::kMoeAct, Module::kSharedExperts}) {
    EXPECT_TRUE(p.recomputes(m, moe(1)));
    EXPECT_FALSE(p.recomputes(m, layer(1)));
  }
}

TEST(Policy, ScopeCanBeThePipelineStage) {
  const auto p = policy(mlp("recompute_mlp_num_layers: 2\nrecompute_layer_scope: stage\n"), {},
                        {24, 6, {}, true});
  EXPECT_TRUE(p.recomputes(Module::kMlp, {8, false, 6}));
  EXPECT_FALSE(p.recomputes(Module::kMlp, {9, false, 6}));
  const auto global = policy(mlp("recompute_mlp_num_layers: 7\n"));
  EXPECT_TRUE(global.recomputes(Module::kMlp, {7, false, 6}));
  EXPECT_FALSE(global.recomputes(Module::kMlp, {8, false, 6}));
}

TEST(Policy, FullBlockAndUniform) {
  const auto block = policy(
      config("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 2\n"));
  EXPECT_EQ(block.full_group(layer(1)), 1);
  EXPECT_EQ(block.full_group(layer(2)), 1);
  EXPECT_EQ(block.full_group(layer(3)), 0);
  EXPECT_EQ(block.full_group({8, false, 6}), 1);  // per stage, as Megatron's
  EXPECT_FALSE(block.recomputes(Module::kMlp, layer(1)));
  const auto uniform = policy(
      config("recompute_granularity: full\nrecompute_method: uniform\nrecompute_num_layers: 3\n"));
  EXPECT_EQ(uniform.full_group(layer(1)), 3);
  EXPECT_EQ(uniform.full_group(layer(2)), 0);
  EXPECT_EQ(uniform.full_group(layer(4)), 3);
}

TEST(Policy, OverrideNeedsNoConfigAndSaysSo) {
  const auto p = policy(Config(), Override{12, "environment variable X"});
  EXPECT_TRUE(p.recomputes(Module::kMlp, layer(12)));
  EXPECT_FALSE(p.recomputes(Module::kMlp, layer(13)));
  EXPECT_FALSE(p.recomputes(Module::kMlp, moe(1)));
  EXPECT_FALSE(p.recomputes(Module::kCoreAttn, layer(1)));
  ASSERT_EQ(p.notices().size(), 1u);
  EXPECT_EQ(p.notices()[0], "environment variable X=12 decides which layers recompute their MLP");
  EXPECT_FALSE(policy(Config(), Override{0, "X"}).recomputes(Module::kMlp, layer(1)));
}

TEST(Policy, OverrideWinsOverTheFileLoudly) {
  const auto p = policy(mlp("recompute_mlp_num_layers: 3\n"), Override{12, "X"});
  EXPECT_TRUE(p.recomputes(Module::kMlp, layer(12)));
  EXPECT_TRUE(p.recomputes(Module::kCoreAttn, layer(20)));  // the rest of the file stays
  EXPECT_EQ(p.notices().at(0),
            "X=12 decides which layers recompute their MLP and OVERRIDES "
            "x.yaml:3:1: recompute_mlp_num_layers");
  const auto conflict = Policy::create(
      config("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 2\n"),
      Override{12, "X"}, {});
  EXPECT_EQ(conflict.error().text,
            "X: conflicts with x.yaml:1:1: recompute_granularity: full, which "
            "recomputes whole layers; unset one of the two");
}

TEST(Policy, EnvironmentVariable) {
  ::unsetenv(kVariable);
  EXPECT_FALSE(Policy::find_override().value().has_value());
  ::setenv(kVariable, "", 1);
  EXPECT_FALSE(Policy::find_override().value().has_value());
  ::setenv(kVariable, "12", 1);
  EXPECT_EQ(Policy::find_override().value()->mlp_num_layers, 12);
  EXPECT_EQ(Policy::find_override().value()->source,
            std::string("environment variable ") + kVariable);
  for (const char* bad : {"-1", "x", "1.5", " 2", "0x2"}) {
    ::setenv(kVariable, bad, 1);
    EXPECT_EQ(Policy::find_override().error().text,
              std::string("environment variable ") + kVariable +
                  ": must be an integer >= 0 (0: no layer), not \"" + bad + "\"");
  }
  ::unsetenv(kVariable);
}

TEST(Policy, AsksOnlyForWhatTheHostHas) {
  EXPECT_EQ(Policy::create(mlp(), {}, {24, 24, std::vector<std::string>{"mlp"}, true}).error().text,
            "x.yaml:2:1: recompute_modules: this host cannot recompute \"core_attn\"; it can "
            "recompute mlp");
  EXPECT_NE(Policy::create(mlp("recompute_mlp_layers: -1\n"), {}, {})
                .error()
                .text.find("counts from the last layer"),
            std::string::npos);
  EXPECT_TRUE(policy(mlp("recompute_mlp_layers: -1\n")).recomputes(Module::kMlp, layer(23)));
  EXPECT_FALSE(policy(mlp("recompute_mlp_layers: -1\n")).recomputes(Module::kMlp, layer(24)));
}

TEST(Policy, WhatAHostDoesNotOfferIsRefusedWithWhatItsAuthorMustSet) {
  const auto refusal = [](const Config& c, const Model& m) {
    const auto p = Policy::create(c, {}, m);
    return p.ok() ? "accepted" : p.error().text;
  };
  Model none;
  none.full = none.distribute = none.stages = false;
  EXPECT_EQ(
      refusal(config("recompute_granularity: full\nrecompute_method: block\n"
                     "recompute_num_layers: 2\n"),
              none),
      "x.yaml:1:1: recompute_granularity: this host does not recompute whole layers; allowed is "
      "selective (its author must set RECOUP_CAN_FULL in recoup_host_v1.capabilities, "
      "HostOptions::capabilities)");
  EXPECT_EQ(refusal(mlp("distribute_saved_activations: true\n"), none),
            "x.yaml:3:1: distribute_saved_activations: this host does not distribute saved "
            "activations; allowed is false (its author must set RECOUP_CAN_DISTRIBUTE in "
            "recoup_host_v1.capabilities, HostOptions::capabilities)");
  EXPECT_EQ(refusal(mlp("recompute_mlp_num_layers: 2\nrecompute_layer_scope: stage\n"), none),
            "x.yaml:4:1: recompute_layer_scope: this host does not say where its pipeline stages "
            "begin; allowed is global (its author must set RECOUP_CAN_STAGES in "
            "recoup_host_v1.capabilities, HostOptions::capabilities)");
  Model silent;
  silent.modules.emplace();
  EXPECT_EQ(
      refusal(mlp(), silent),
      "x.yaml:2:1: recompute_modules: this host cannot recompute \"core_attn\"; it says of no "
      "module that it can: its author must set recoup_host_v1.modules "
      "(HostOptions::modules)");
}

TEST(Policy, LevelsNeedAHostThatSplitsItsMlp) {
  const auto c = mlp("mlp_recompute_level: activation\n");
  EXPECT_EQ(policy(c).mlp_level(layer(1)), MlpLevel::kActivation);
  EXPECT_EQ(policy(mlp()).mlp_level(layer(1)), MlpLevel::kFull);
  EXPECT_NE(Policy::create(mlp("mlp_activation_layers: last\n"), {}, {24, 24, {}, false})
                .error()
                .text.find("cannot recompute the activation alone"),
            std::string::npos);
  EXPECT_NE(Policy::create(mlp("mlp_activation_layers: last\n"), {}, {})
                .error()
                .text.find("x.yaml:3:1: mlp_activation_layers: counts from the last layer"),
            std::string::npos);
  const auto mixed = policy(mlp("mlp_activation_layers: 3-\n"));
  EXPECT_EQ(mixed.mlp_level(layer(2)), MlpLevel::kFull);
  EXPECT_EQ(mixed.mlp_level(layer(3)), MlpLevel::kActivation);
  EXPECT_EQ(Policy::create(c, {}, {24, 24, {}, false}).error().text,
            "x.yaml:3:1: mlp_recompute_level: this host cannot recompute the activation alone; "
            "allowed is full (its author must set RECOUP_MLP_ACTIVATION in recoup_host_v1.modules, "
            "HostOptions::modules)");
}

TEST(Policy, WarnsOfLayersThatAreNotThere) {
  EXPECT_EQ(policy(mlp("recompute_mlp_num_layers: 30\n")).notices().at(0),
            "x.yaml:3:1: recompute_mlp_num_layers: names layer 30, but there are 24");
}

}  // namespace
}  // namespace recoup
