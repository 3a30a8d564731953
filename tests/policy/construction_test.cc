#include "recoup/policy/construction.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace recoup {
namespace {

Policy policy(const std::string& rest, Model model = {4, 4}) {
  return Policy::create(
             parse_config("recompute_granularity: selective\nrecompute_modules: " + rest, "x.yaml")
                 .value(),
             {}, model)
      .value();
}

// What is said with the last of `layers`; nothing may be said before.
std::vector<LogLine> after(Construction& construction, const std::vector<LayerInfo>& layers) {
  for (std::size_t i = 0; i + 1 < layers.size(); ++i) {
    EXPECT_TRUE(construction.add(layers[i]).empty());
  }
  return construction.add(layers.back());
}

TEST(Construction, ModulesThatNoLayerHas) {
  const auto mlp = policy("[mlp]");
  Construction all_moe(mlp);
  const auto lines = after(all_moe, {{1, true}, {2, true}, {3, true}, {4, true}});
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_TRUE(lines[0].warning);
  EXPECT_EQ(lines[0].text,
            "x.yaml:2:1: recompute_modules: \"mlp\": none of the 4 layers constructed here has it: "
            "all are MoE layers");
  EXPECT_FALSE(lines[1].warning);
  EXPECT_EQ(lines[1].text, "4 layers constructed: 0 of 0 MLPs recomputed");
  EXPECT_TRUE(all_moe.finish().empty());  // once
  EXPECT_TRUE(all_moe.add({5}).empty());

  const auto moe = policy("[moe]");
  Construction dense(moe);
  EXPECT_EQ(after(dense, {{1}, {2}, {3}, {4}}).at(0).text,
            "x.yaml:2:1: recompute_modules: \"moe\": none of the 4 layers constructed here has it: "
            "none is an MoE layer");
}

TEST(Construction, ModulesThatNoLayerOfTheModelRecomputes) {
  const auto second = policy("[mlp]\nrecompute_mlp_layers: 2\n");
  const std::vector<LayerInfo> layers = {{1}, {2, true}, {3}, {4}};
  Construction whole(second);
  const auto lines = after(whole, layers);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].text,
            "x.yaml:2:1: recompute_modules: \"mlp\": none of the 4 layers recomputes it");
  EXPECT_EQ(lines[1].text, "4 layers constructed: 0 of 3 MLPs recomputed");
  // A pipeline stage may hold none of them.
  const auto of_eight = policy("[mlp]\nrecompute_mlp_layers: 2\n", {8, 4});
  Construction stage(of_eight);
  EXPECT_TRUE(after(stage, {{5}, {6}, {7}, {8}}).empty());
}

TEST(Construction, SaysNothingWhereAllIsSaid) {
  const auto mlp = policy("[mlp]");
  Construction construction(mlp);
  EXPECT_TRUE(after(construction, {{1}, {2}, {3}, {4}}).empty());
  const auto of_unknown = policy("[mlp]", {});
  Construction unknown(of_unknown);
  EXPECT_TRUE(after(unknown, {{1}, {2, true}}).empty());
  EXPECT_EQ(unknown.finish().at(0).text,
            "2 layers constructed: 1 of 1 MLPs recomputed (layer 1, level full)");
  Construction none(mlp);
  EXPECT_TRUE(none.finish().empty());
}

TEST(Construction, AnyNumberOfThreads) {
  const auto mlp = policy("[mlp]", {800, 800});
  Construction construction(mlp);
  std::atomic<int> said{0};
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (std::int64_t n = 1; n <= 100; ++n) {
        said += static_cast<int>(construction.add({t * 100 + n, true}).size());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(said, 2);
}

}  // namespace
}  // namespace recoup
