#include <gtest/gtest.h>

#include "recoup/policy/policy.h"

namespace recoup {
namespace {

Policy policy(const std::string& yaml, Model model = {24, 24},
              std::optional<Override> override = {}) {
  auto config = parse_config(yaml, "x.yaml");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().text);
  auto p = Policy::create(config.value(), std::move(override), model);
  EXPECT_TRUE(p.ok()) << (p.ok() ? "" : p.error().text);
  return p.value();
}
std::string summary(const std::string& yaml, Model model = {24, 24}) {
  return policy("recompute_granularity: " + yaml, model).summary();
}

TEST(Summary, SaysWhatHappensInOneLine) {
  EXPECT_EQ(summary("selective\nrecompute_modules: [core_attn, mlp]\nrecompute_mlp_num_layers: 12"),
            "12 of 24 MLPs recomputed (layers 1-12, level full), core_attn everywhere");
  EXPECT_EQ(summary("selective\nrecompute_modules: [mlp]\nmlp_recompute_level: activation"),
            "24 of 24 MLPs recomputed (layers 1-24, level activation)");
  EXPECT_EQ(
      summary("selective\nrecompute_modules: [mlp, layernorm, moe_act]\nrecompute_mlp_layers: "
              "[1, 5, 9, 24]\nmlp_activation_layers: 5-9\nrecompute_layernorm_layers: 2\n"
              "recompute_moe_act_layers: 3-"),
      "4 of 24 MLPs recomputed (layers 1-9:4,24, level activation in layers 5,9, else "
      "full), layernorm in layer 2, moe_act in layers 3- that are MoE");
  EXPECT_EQ(summary("selective"), "no MLP recomputed, core_attn everywhere");
  EXPECT_EQ(summary("selective\nrecompute_modules: [moe]"),
            "no MLP recomputed, moe in every MoE layer");
  EXPECT_EQ(summary("null"), "nothing is recomputed");
  EXPECT_EQ(policy("", {24, 24}, Override{0, "X"}).summary(), "0 of 24 MLPs recomputed");
  EXPECT_EQ(summary("selective\nrecompute_modules: [mlp]\ndistribute_saved_activations: true"),
            "24 of 24 MLPs recomputed (layers 1-24, level full), saved activations distributed");
  Model budget{24, 24};
  budget.budget = true;
  EXPECT_EQ(summary("selective\nrecompute_modules: [mlp]\nrecompute_memory_budget: 74GiB", budget),
            "24 of 24 MLPs recomputed (layers 1-24, level full), no more of it than a budget of "
            "74.00 GiB needs");
}

TEST(Summary, SaysWhatIsKnownWhereTheModelIsNot) {
  const std::string mlp = "selective\nrecompute_modules: [mlp]\n";
  EXPECT_EQ(summary(mlp + "recompute_mlp_num_layers: 12", {}),
            "the MLPs of layers 1-12 recomputed (level full)");
  EXPECT_EQ(summary(mlp + "recompute_mlp_layers: '!3'\nmlp_activation_layers: 2/3", {}),
            "the MLPs of layers !3 recomputed (level activation in layers 2/3, else full)");
  EXPECT_EQ(summary(mlp, {std::int64_t{1} << 40}),
            "the MLPs of layers all recomputed (level full)");
  Model some{24, 24};
  some.num_mlps = 12;  // but which?
  EXPECT_EQ(summary(mlp + "recompute_mlp_num_layers: 12", some),
            "the MLPs of layers 1-12 recomputed (level full)");
  EXPECT_EQ(summary(mlp + "recompute_mlp_num_layers: 3\nrecompute_layer_scope: mlp", some),
            "3 of 12 MLPs recomputed (MLPs 1-3, level full)");
  EXPECT_EQ(summary(mlp + "recompute_mlp_num_layers: 2\nrecompute_layer_scope: stage", {24, 6}),
            "2 of 6 MLPs of the stage recomputed (the stage's layers 1-2, level full)");
}

TEST(Summary, OfWholeLayers) {
  const std::string block = "full\nrecompute_method: block\nrecompute_num_layers: ";
  const std::string uniform = "full\nrecompute_method: uniform\nrecompute_num_layers: ";
  EXPECT_EQ(summary(block + "12"), "12 of 24 layers recomputed whole (1-12)");
  EXPECT_EQ(summary(block + "2", {24, 6}), "2 of 6 layers of the stage recomputed whole (1-2)");
  EXPECT_EQ(summary(block + "2", {}), "the first 2 layers of each stage recomputed whole");
  EXPECT_EQ(summary(uniform + "5"),
            "all 24 layers recomputed whole, 5 to a checkpoint (5 of them)");
  EXPECT_EQ(summary(uniform + "4", {}), "all layers recomputed whole, 4 to a checkpoint");
}

TEST(Summary, OfConstructedLayersKnowsTheMoeOnes) {
  const auto p = policy(
      "recompute_granularity: selective\nrecompute_modules: [core_attn, mlp, moe_act]\n"
      "recompute_mlp_num_layers: 12\nmlp_activation_layers: 1\nrecompute_moe_act_layers: 2-4\n");
  std::vector<LayerInfo> layers;
  for (std::int64_t n = 24; n >= 1; --n) layers.push_back({n, n % 2 == 0});
  EXPECT_EQ(p.summary(layers),
            "6 of 12 MLPs recomputed (layers 1-11:2, level activation in layer 1, else full), "
            "core_attn everywhere, moe_act in layers 2,4");
  EXPECT_EQ(p.summary({{20}, {22, true}}),
            "0 of 1 MLPs recomputed, core_attn everywhere, moe_act nowhere");
}

TEST(Summary, LayersSayLevelGroupAndModules) {
  const std::string selective = "recompute_granularity: selective\n";
  const auto p = policy(selective +
                        "recompute_modules: [mlp, core_attn, layernorm, moe_act]\n"
                        "recompute_mlp_num_layers: 2\nmlp_activation_layers: 2\n");
  EXPECT_EQ(p.describe({1}), "Layer 1: recompute_mlp=True, level full, also core_attn, layernorm");
  EXPECT_EQ(p.describe({2}),
            "Layer 2: recompute_mlp=True, level activation, also core_attn, layernorm");
  EXPECT_EQ(p.describe({3, true}),
            "Layer 3: recompute_mlp=False, also core_attn, layernorm, moe_act");
  EXPECT_EQ(policy("").describe({3}), "Layer 3: recompute_mlp=False");

  const std::string full = "recompute_granularity: full\nrecompute_method: ";
  const auto block = policy(full + "block\nrecompute_num_layers: 2\n");
  EXPECT_EQ(block.describe({2}), "Layer 2: recompute_mlp=False, whole layer");
  EXPECT_EQ(block.describe({3}), "Layer 3: recompute_mlp=False");
  const auto uniform = policy(full + "uniform\nrecompute_num_layers: 4\n");
  EXPECT_EQ(uniform.describe({5}),
            "Layer 5: recompute_mlp=False, whole layers 5-8 in one checkpoint");
  EXPECT_EQ(uniform.describe({8}),
            "Layer 8: recompute_mlp=False, whole layer in layer 5's checkpoint");
  EXPECT_EQ(uniform.describe({8, false, 6}),
            "Layer 8: recompute_mlp=False, whole layer in layer 7's checkpoint");
  const auto single = policy(full + "uniform\nrecompute_num_layers: 1\n");
  EXPECT_EQ(single.describe({5}), "Layer 5: recompute_mlp=False, whole layer");
}

}  // namespace
}  // namespace recoup
