// Pipeline stages and their timelines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fixtures.h"
#include "recoup/models/step.h"

namespace recoup::models {
namespace {

TEST(Stages, AreUnevenWhereTheyMustBe) {
  const auto stages = [](std::int64_t layers, const std::string& rest) {
    const auto d = read_recoup(
        "layers: " + std::to_string(layers) + "\nhidden: 64\nheads: 4\nsequence: 32\n" + rest, "m");
    if (!d.ok()) throw std::runtime_error(d.error().text);
    const auto ok = check(d.value().model, d.value().parallel);
    if (!ok.ok()) throw std::runtime_error(ok.error().text);
    return stage_layers(d.value().model, d.value().parallel);
  };
  using Layers = std::vector<std::int64_t>;
  EXPECT_EQ(stages(126, "pipeline_parallel: 16\n"),
            (Layers{7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7}));
  EXPECT_EQ(stages(61, "pipeline_parallel: 16\n"),
            (Layers{3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3}));
  EXPECT_EQ(stages(10, "pipeline_parallel: 4\nfirst_stage: 1\nlast_stage: 3\n"),
            (Layers{1, 3, 3, 3}));
  EXPECT_EQ(stages(30, "stages: 7,8x2,7\n"), (Layers{7, 8, 8, 7}));
}

TEST(Stages, HoldTheMicrobatchesOfTheirSchedule) {
  Parallel p;
  p.pipeline = 8, p.microbatches = 64;
  EXPECT_EQ(in_flight(p, 0), 8);
  EXPECT_EQ(in_flight(p, 7), 1);
  p.schedule = "gpipe";
  EXPECT_EQ(in_flight(p, 3), 64);
  p.schedule = "interleaved", p.virtual_stages = 2;
  EXPECT_EQ(in_flight(p, 0),
            (14 + 8 + 1) / 2.0);  // the paper's 1 + (p - 1) / (p m) of p stages, about
  p.schedule = "1f1b", p.microbatches = 2;
  EXPECT_EQ(in_flight(p, 0), 2);
}

TEST(Stages, TheTimelineHoldsWhatTheTableSays) {
  auto d = hf(config("llama", kLlama8B), 8192);
  d.parallel.pipeline = 4, d.parallel.microbatches = 8, d.parallel.tensor = 8,
  d.parallel.sequence_parallel = true;
  for (std::int64_t s = 0; s < 4; ++s) {
    const auto stage = stage_of(d, s, RECOUP_MLP | RECOUP_MLP_ACTIVATION).value();
    ASSERT_TRUE(budget::check(stage.timeline).ok()) << budget::check(stage.timeline).error().text;
    const auto model = budget::Model::from(stage.timeline).value();
    const auto plain = model.predict(model.kept()).peak, full = model.predict(model.deepest()).peak;
    const auto saved =
        static_cast<std::int64_t>(static_cast<double>(stage.activations) * stage.in_flight);
    EXPECT_GT(plain, stage.at_rest + saved);
    EXPECT_LT(plain,
              stage.at_rest + saved + stage.logits * 3 + stage.gradients + stage.activations);
    // 8 layers' MLPs less in each microbatch in flight, but for the one that is being rerun.
    const auto mlp = layer_bytes(d.model, d.parallel, 0).mlp_full();
    EXPECT_LE(full, plain - static_cast<std::int64_t>(mlp * 8 * stage.in_flight * 0.6));
  }
}

TEST(Stages, LargerThanAnyDeviceIsRefused) {
  auto d = hf(config("llama", kLlama8B), std::int64_t{1} << 32);
  d.parallel.microbatch = std::int64_t{1} << 32;
  EXPECT_FALSE(stage_of(d, 0, RECOUP_MLP).ok());
}

}  // namespace
}  // namespace recoup::models
