// Choices against brute force over every decision of the simulated step.
#include "recoup/budget/choose.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>

#include "simulator.h"

namespace recoup::budget::testing {
namespace {

// Calls `each` with every decision.
template <class F>
void every_decision(std::size_t units, bool two_levels, F each) {
  Decisions d(units, Level::kKept);
  while (true) {
    each(d);
    std::size_t u = 0;
    for (; u < units; ++u) {
      if (d[u] == Level::kFull) {
        d[u] = Level::kKept;
      } else {
        d[u] = two_levels && d[u] == Level::kKept ? Level::kActivation : Level::kFull;
        break;
      }
    }
    if (u == units) return;
  }
}

// The peaks are the simulation's, the costs the model's, in which layers of equal bytes share a
// time.
std::int64_t cost_of(const Model& model, const Decisions& d) {
  std::int64_t sum = 0;
  for (std::size_t u = 0; u < d.size(); ++u) sum += model.units()[u].cost_ns[index(d[u])];
  return sum;
}

std::optional<std::int64_t> least_cost(const Step& step, const Model& model, bool two_levels,
                                       std::int64_t budget) {
  std::optional<std::int64_t> least;
  every_decision(step.units(), two_levels, [&](const Decisions& d) {
    const auto cost = cost_of(model, d);
    if ((!least || cost < *least) && step.peak(d) <= budget) least = cost;
  });
  return least;
}

struct Kind {
  const char* name;
  std::size_t layers;
  bool alike, two_levels, exact;
  Schedule schedule;
};

class Choices : public ::testing::TestWithParam<Kind> {};

TEST_P(Choices, AgainstBruteForce) {
  const auto& kind = GetParam();
  constexpr int kInstances = 200;
  int optimal = 0;
  double sum = 0, worst = 0;
  for (std::uint32_t seed = 0; seed < kInstances; ++seed) {
    Dice dice(seed * 7919 + 13);
    auto shape = random_step(dice, kind.layers, kind.alike, kind.schedule);
    shape.two_levels = kind.two_levels;
    const Step step(shape);
    const auto model = Model::from(step.run(Decisions(step.units(), Level::kFull))).value();
    const auto plain = step.peak(model.kept()), full = step.peak(model.deepest());
    const auto budget = full + (plain - full) * dice.roll(0, 99) / 100;
    const auto least = least_cost(step, model, kind.two_levels, budget);
    const auto choice = choose(model, budget);
    ASSERT_TRUE(least);  // everything recomputed fits
    ASSERT_TRUE(choice.fits) << "seed " << seed;
    ASSERT_LE(step.peak(choice.decisions), budget) << "seed " << seed;
    ASSERT_EQ(choice.prediction.peak, step.peak(choice.decisions));
    const auto cost = cost_of(model, choice.decisions);
    ASSERT_GE(cost, *least);
    const auto gap = *least == 0 ? static_cast<double>(cost)
                                 : static_cast<double>(cost - *least) / static_cast<double>(*least);
    optimal += cost == *least;
    sum += gap;
    worst = std::max(worst, gap);
  }
  std::printf("%-28s optimal %d of %d, mean gap %.4f %%, worst %.2f %%\n", kind.name, optimal,
              kInstances, 100 * sum / kInstances, 100 * worst);
  if (kind.exact) {
    EXPECT_EQ(optimal, kInstances);
  } else {
    EXPECT_LE(sum / kInstances, 0.001);
    EXPECT_LE(worst, 0.05);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, Choices,
    ::testing::Values(Kind{"alike", 9, true, false, true, gradient_accumulation(1)},
                      Kind{"alike_two_levels", 7, true, true, true, gradient_accumulation(1)},
                      Kind{"unlike", 9, false, false, true, gradient_accumulation(1)},
                      Kind{"unlike_two_levels", 7, false, true, true, gradient_accumulation(1)},
                      Kind{"accumulation_alike", 3, true, false, false, gradient_accumulation(3)},
                      Kind{"accumulation_unlike", 3, false, false, false, gradient_accumulation(3)},
                      Kind{"accumulation_two_levels", 2, false, true, false,
                           gradient_accumulation(3)},
                      Kind{"pipeline_3x3_alike", 3, true, false, false, one_f_one_b(3, 2)},
                      Kind{"pipeline_3x3_unlike", 3, false, false, false, one_f_one_b(3, 2)},
                      Kind{"pipeline_2x5_alike", 2, true, false, false, one_f_one_b(5, 3)},
                      Kind{"pipeline_2x5_unlike", 2, false, false, false, one_f_one_b(5, 3)},
                      Kind{"pipeline_two_levels", 2, false, true, false, one_f_one_b(3, 2)}),
    [](const auto& info) { return info.param.name; });

TEST(Choice, AlikeLayersGiveTheFirstN) {
  Dice dice(11);
  auto shape = random_step(dice, 12, true, gradient_accumulation(1));
  shape.two_levels = false;
  const Step step(shape);
  const auto model = Model::from(step.run(Decisions(12, Level::kFull))).value();
  const auto plain = step.peak(model.kept()), full = step.peak(model.deepest());
  for (int k = 0; k <= 20; ++k) {
    const auto choice = choose(model, full + (plain - full) * k / 20);
    ASSERT_TRUE(choice.fits);
    for (std::size_t n = 1; n < 12; ++n)
      EXPECT_GE(choice.decisions[n - 1], choice.decisions[n]) << k;
  }
}

TEST(Choice, ABudgetAboveThePlainPeakRecomputesNothing) {
  Dice dice(2);
  const Step step(random_step(dice, 6, false, one_f_one_b(4, 3)));
  const auto model = Model::from(step.run(Decisions(step.units(), Level::kFull))).value();
  const auto choice = choose(model, step.peak(model.kept()));
  EXPECT_TRUE(choice.fits);
  EXPECT_EQ(choice.decisions, model.kept());
  EXPECT_EQ(choice.prediction.cost_ns, 0);
}

TEST(Choice, ABudgetBelowTheFloorGivesTheDeepestAndSaysSo) {
  Dice dice(2);
  const Step step(random_step(dice, 6, false, gradient_accumulation(2)));
  const auto model = Model::from(step.run(Decisions(step.units(), Level::kFull))).value();
  const auto choice = choose(model, 1);
  EXPECT_FALSE(choice.fits);
  EXPECT_EQ(choice.decisions, model.deepest());
  EXPECT_EQ(choice.prediction.peak, step.peak(model.deepest()));
  const auto least = least_budget(model);
  EXPECT_TRUE(choose(model, least).fits);
  EXPECT_FALSE(choose(model, least - 1).fits);
}

TEST(Choice, RespectsWhatMayBeRecomputed) {
  Dice dice(4);
  const Step step(random_step(dice, 6, true, gradient_accumulation(1)));
  auto timeline = step.run(Decisions(6, Level::kFull));
  for (std::size_t n = 0; n < 6; ++n)
    timeline.units[n].may_full = n < 2, timeline.units[n].may_activation = n < 4;
  const auto model = Model::from(timeline).value();
  for (const auto budget : {std::int64_t{1}, least_budget(model)}) {
    const auto choice = choose(model, budget);
    for (std::size_t n = 0; n < 6; ++n)
      EXPECT_TRUE(timeline.units[n].may(choice.decisions[n])) << n;
  }
}

TEST(Choice, NothingToChooseIsNoError) {
  const auto t = parse("recoup timeline 1\nmark -1 5 9\nend -1 5 6\n", "t").value();
  const auto model = Model::from(t).value();
  EXPECT_TRUE(choose(model, 9).fits);
  EXPECT_FALSE(choose(model, 8).fits);
  EXPECT_FALSE(choose(model, 8, Options{Pipeline{1}}).fits);
}

TEST(SameInMicrobatches, IsCloseToBruteForce) {
  int optimal = 0;
  double worst = 0;
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    Dice dice(seed + 5000);
    const std::int64_t layers = 5;
    auto shape = random_step(dice, layers, seed % 2 == 0, one_f_one_b(4, 3));
    const Step step(shape);
    const auto model = Model::from(step.run(Decisions(step.units(), Level::kFull))).value();
    const auto plain = step.peak(model.kept()), full = step.peak(model.deepest());
    const auto budget = full + (plain - full) * dice.roll(0, 99) / 100;
    std::optional<std::int64_t> least;
    every_decision(layers, true, [&](const Decisions& one) {
      Decisions d;
      for (const auto& u : model.timeline().units)
        d.push_back(one[static_cast<std::size_t>(u.layer - 1)]);
      const auto cost = cost_of(model, d);
      if ((!least || cost < *least) && step.peak(d) <= budget) least = cost;
    });
    Options options;
    options.same_in_microbatches = true;
    const auto choice = choose(model, budget, options);
    ASSERT_TRUE(choice.fits);
    ASSERT_LE(step.peak(choice.decisions), budget);
    std::vector<std::optional<Level>> levels(layers);
    for (std::size_t u = 0; u < step.units(); ++u) {
      auto& level = levels[static_cast<std::size_t>(model.timeline().units[u].layer - 1)];
      ASSERT_TRUE(!level || *level == choice.decisions[u]);
      level = choice.decisions[u];
    }
    optimal += choice.prediction.cost_ns == *least;
    if (*least > 0) {
      worst = std::max(worst, static_cast<double>(choice.prediction.cost_ns - *least) /
                                  static_cast<double>(*least));
    }
  }
  std::printf("the same in microbatches     optimal %d of 200, worst %.2f %%\n", optimal,
              100 * worst);
  EXPECT_GE(optimal, 195);
  EXPECT_LE(worst, 0.05);
}

TEST(PipelineRule, MicrobatchesDifferByAtMostOneUnitInTheSteadyState) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    Dice dice(seed);
    constexpr std::int64_t kMicrobatches = 12, kInFlight = 4, kLayers = 6;
    auto shape = random_step(dice, kLayers, true, one_f_one_b(kMicrobatches, kInFlight));
    shape.two_levels = false;
    const Step step(shape);
    const auto model = Model::from(step.run(Decisions(step.units(), Level::kFull))).value();
    const auto plain = step.peak(model.kept()), full = step.peak(model.deepest());
    const auto budget = full + (plain - full) * dice.roll(5, 95) / 100;
    std::vector<std::vector<std::int64_t>> stages;
    for (std::int64_t stage = 0; stage < 2; ++stage) {
      const auto choice = choose(model, budget, Options{Pipeline{stage}});
      ASSERT_TRUE(choice.fits);
      EXPECT_LE(step.peak(choice.decisions), budget);
      std::vector<std::int64_t> recomputed(kMicrobatches);
      for (std::size_t u = 0; u < step.units(); ++u) {
        recomputed[static_cast<std::size_t>(model.timeline().units[u].microbatch)] +=
            choice.decisions[u] != Level::kKept;
      }
      const auto steady = std::minmax_element(recomputed.begin() + kInFlight, recomputed.end());
      EXPECT_LE(*steady.second - *steady.first, 1) << "seed " << seed;
      for (std::int64_t m = 0; m < kInFlight; ++m) EXPECT_LE(recomputed[m], *steady.first + 1);
      stages.push_back(recomputed);
    }
    // Never dearer than the same N in every microbatch.
    std::int64_t same = kLayers;
    for (std::int64_t n = kLayers; n >= 0; --n) {
      Decisions d;
      for (const auto& u : model.timeline().units)
        d.push_back(u.layer <= n ? Level::kFull : Level::kKept);
      if (step.peak(d) <= budget) same = n;
    }
    std::int64_t all = 0;
    for (const auto n : stages[0]) all += n;
    EXPECT_LE(all, same * kMicrobatches) << "seed " << seed;
  }
}

}  // namespace
}  // namespace recoup::budget::testing
