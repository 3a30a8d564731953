// The controller against simulated steps: what it decides is what the next step does. Peaks are
// the simulation's own, which knows nothing of the budget's formula.
#include "controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "recoup/modules.h"
#include "simulator.h"

namespace recoup {
namespace {

using budget::Decisions;
using budget::EventKind;
using budget::Level;
using budget::testing::gradient_accumulation;
using budget::testing::one_f_one_b;
using budget::testing::Schedule;
using budget::testing::Step;
using budget::testing::StepShape;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::int64_t kMiB = 1 << 20;

StepShape layers(std::size_t count, Schedule schedule, std::int64_t length = 4) {
  budget::testing::LayerShape layer{};
  layer.attention_transient = length * length * kMiB / 8;
  layer.attention = 2 * length * kMiB + layer.attention_transient;
  layer.x = layer.y = layer.mask = length * kMiB;
  layer.h = layer.s = layer.r = 4 * length * kMiB;
  layer.gradients = 3 * kMiB;
  layer.full_ns = 1000;
  layer.activation_ns = 100;
  StepShape shape;
  shape.layers.assign(count, layer);
  shape.schedule = std::move(schedule);
  shape.base = 100 * kMiB;
  shape.logits = 2 * length * kMiB;
  shape.optimizer = kMiB;
  return shape;
}

// A host that trains simulated steps.
class Host {
 public:
  explicit Host(std::int64_t budget, std::function<void(Controller::World&)> change = nullptr) {
    Controller::World world;
    world.budget = budget;
    world.memory = [this](bool restart, budget::Memory* memory) {
      ++queries;
      *memory = now_;
      if (restart) now_.peak = now_.bytes;
      return !memory_fails;
    };
    world.say = [this](bool warning, const std::string& line) {
      (warning ? warnings : lines).push_back(line);
    };
    if (change) change(world);
    controller = std::make_unique<Controller>(std::move(world));
  }

  // One optimizer step; its peak. `length` is the step's shape for the controller.
  std::int64_t step(const StepShape& shape, std::int64_t length = 4, bool failed = false) {
    const Step simulated(shape);
    Decisions decisions(simulated.units(), Level::kFull);
    const auto count = shape.layers.size();
    std::vector<bool> measured(simulated.units(), false);
    for (const auto& [way, m] : shape.schedule) {
      for (std::size_t n = 0; way == 'F' && n < count; ++n) {
        const auto u = static_cast<std::size_t>(m) * count + n;
        const auto layer = static_cast<std::int64_t>(n) + 1;
        const auto microbatch = says_microbatch ? m + 1 : 0;
        Decision most;
        most.recompute_mlp = 1;
        most.recompute_modules = RECOUP_MLP;
        const auto decision = controller->decide(most, layer, microbatch);
        decisions[u] = Level::kKept;
        if (!decision.recompute_mlp) continue;
        const auto run = controller->begins(layer, RECOUP_MLP, microbatch, {2, length, 64},
                                            decision.mlp_activation_only ? 7 : shape.layers[n].x);
        measured[u] = run.measured;
        if (run.recompute) {
          decisions[u] = decision.mlp_activation_only ? Level::kActivation : Level::kFull;
        }
      }
    }
    last = decisions;
    const auto truth = simulated.run(decisions);
    if (std::count(measured.begin(), measured.end(), true) != 0) {
      EXPECT_EQ(std::count(measured.begin(), measured.end(), false), 0);
      feed(truth);
      ++measured_steps;
    } else {
      now_ = {truth.events.back().bytes, std::max(now_.peak, truth.peak())};
    }
    now_.peak = std::max(now_.peak, truth.peak() * (spike ? 2 : 1));
    done = controller->step_end(failed, false);
    return truth.peak();
  }

  void feed(const budget::Timeline& truth) {
    for (const auto& e : truth.events) {
      now_ = {e.bytes, e.peak};
      if (e.unit < 0) continue;
      const auto& unit = truth.units[static_cast<std::size_t>(e.unit)];
      const auto run = static_cast<std::uint64_t>(e.unit) + 1;
      auto& record = controller->record();
      const auto memory = controller->measure();
      switch (e.kind) {
        case EventKind::kForwardBegin:
          controller->unit_begins(run, unit.layer, "mlp", RECOUP_MLP,
                                  says_microbatch ? unit.microbatch + 1 : 0, memory);
          record.costs(run, unit.cost_ns[1], unit.cost_ns[2]);
          break;
        case EventKind::kForwardEnd:
          record.forward_ends(run, unit.fc1_bytes, unit.holds_fc1, memory);
          break;
        case EventKind::kBackwardBegin:
          record.backward_begins(run, unit.extra_bytes[2], memory);
          break;
        case EventKind::kRerunEnd:
          record.rerun_ends(run, memory);
          break;
        default:
          record.backward_ends(run, memory);
      }
    }
  }

  // Something outside of the step needs that much for a moment.
  void spike_now(std::int64_t bytes) { now_.peak = std::max(now_.peak, bytes); }

  std::int64_t recomputed() const {
    return static_cast<std::int64_t>(last.size()) -
           std::count(last.begin(), last.end(), Level::kKept);
  }

  std::unique_ptr<Controller> controller;
  std::vector<std::string> lines, warnings;
  Decisions last;
  bool says_microbatch = true, memory_fails = false, spike = false, done = true;
  int queries = 0, measured_steps = 0;

 private:
  budget::Memory now_;
};

struct Peaks {
  std::int64_t all, none;
};
Peaks peaks(const StepShape& shape) {
  const Step step(shape);
  return {step.peak(Decisions(step.units(), Level::kFull)),
          step.peak(Decisions(step.units(), Level::kKept))};
}

TEST(Controller, PlansFromTheFourthStepOnAndNeverGoesAbove) {
  for (const auto& schedule :
       {gradient_accumulation(1), gradient_accumulation(3), one_f_one_b(6, 3)}) {
    const auto shape = layers(6, schedule);
    const auto [all, none] = peaks(shape);
    for (int k = 0; k <= 10; ++k) {
      const auto budget = all + (none - all) * k / 10;
      Host host(budget);
      for (int s = 0; s < 3; ++s) {
        EXPECT_EQ(host.step(shape), all);
        EXPECT_EQ(host.recomputed(), static_cast<std::int64_t>(host.last.size()));
      }
      EXPECT_EQ(host.measured_steps, 1);
      const auto queries = host.queries;
      for (int s = 0; s < 4; ++s) {
        EXPECT_LE(host.step(shape), budget) << k;
      }
      EXPECT_EQ(host.queries, queries + 4);  // one a step's end
      if (k == 10) {
        EXPECT_EQ(host.recomputed(), 0);
      }
      if (k > 0) {  // some are released, or need less again
        EXPECT_NE(std::count(host.last.begin(), host.last.end(), Level::kFull),
                  static_cast<std::int64_t>(host.last.size()));
      }
      EXPECT_THAT(host.warnings, IsEmpty());
      ASSERT_EQ(host.lines.size(), 2u);
      EXPECT_THAT(host.lines[0], AllOf(HasSubstr("recoup: budget "), HasSubstr(" released, ")));
      EXPECT_THAT(host.lines[1], HasSubstr("recoup: step 4: peak "));
    }
  }
}

TEST(Controller, ABudgetBelowTheFloorIsSaidOnceAndTrainingGoesOn) {
  const auto shape = layers(4, gradient_accumulation(1));
  const auto [all, none] = peaks(shape);
  Host host(all - kMiB);
  for (int s = 0; s < 8; ++s) EXPECT_LE(host.step(shape), all);
  EXPECT_THAT(host.warnings, ElementsAre(AllOf(HasSubstr("cannot be kept"), HasSubstr(", in "),
                                               HasSubstr("training goes on"))));
  EXPECT_EQ(host.measured_steps, 1);
}

TEST(Controller, AHostThatDoesNotNumberItsMicrobatchesGetsTheSameInAll) {
  const auto shape = layers(6, gradient_accumulation(3));
  const auto [all, none] = peaks(shape);
  Host host(all + (none - all) / 2);
  host.says_microbatch = false;
  for (int s = 0; s < 6; ++s) host.step(shape);
  for (std::size_t n = 1; n < 6; ++n) {  // the step's first part shows its shape, at level full
    EXPECT_EQ(host.last[n], host.last[n + 6]);
    EXPECT_EQ(host.last[n], host.last[n + 12]);
  }
  EXPECT_LE(host.step(shape), all + (none - all) / 2);
  EXPECT_LT(host.recomputed(), 18);
}

TEST(Controller, AHostThatGrowsIsAboveInTheOneStepThatShowsIt) {
  auto shape = layers(6, gradient_accumulation(2));
  const auto [all, none] = peaks(shape);
  const auto budget = all + (none - all) / 2;
  Host host(budget);
  int above = 0;
  for (int s = 1; s <= 30; ++s) {
    if (s == 20) shape.base += (budget - all) / 2 + budget / 50;
    above += host.step(shape) > budget ? 1 : 0;
  }
  EXPECT_EQ(above, 1);
  EXPECT_EQ(host.measured_steps, 2);
  EXPECT_THAT(host.warnings, ElementsAre(HasSubstr("step 20: peak ")));
  EXPECT_LT(host.recomputed(), 12);  // planned again
}

TEST(Controller, AGradientBufferThatComesLateIsFoundToo) {
  auto shape = layers(6, gradient_accumulation(2));
  auto late = shape;
  late.keeps_gradients = true;
  late.base += 18 * kMiB;
  const auto budget = (peaks(shape).all + peaks(shape).none) / 2;
  Host host(budget);
  for (int s = 0; s < 10; ++s) host.step(shape);
  int above = 0;
  for (int s = 0; s < 10; ++s) above += host.step(late) > budget ? 1 : 0;
  EXPECT_LE(above, 1);
}

TEST(Controller, WhatComesAndGoesIsLeftFree) {
  const auto shape = layers(6, gradient_accumulation(1));
  const auto [all, none] = peaks(shape);
  Host host(2 * none + kMiB);  // room for the spike only where something recomputes
  for (int s = 1; s <= 40; ++s) {
    host.spike = s % 10 == 0;  // twice the peak, never in a measured step
    host.step(shape);
  }
  EXPECT_THAT(host.warnings, ElementsAre(HasSubstr("step 10: peak ")));  // once
  EXPECT_THAT(host.lines, ::testing::Contains(HasSubstr("left free from now on")));
}

TEST(Controller, AFailedStepIsNotUsed) {
  const auto shape = layers(4, gradient_accumulation(2));
  const auto [all, none] = peaks(shape);
  const auto budget = (all + none) / 2;
  Host host(budget);
  host.step(shape, 4, true);  // a warm-up that is none
  for (int s = 0; s < 2; ++s) host.step(shape);
  EXPECT_EQ(host.measured_steps, 0);
  host.step(shape, 4, true);  // measured in vain
  EXPECT_EQ(host.measured_steps, 1);
  host.memory_fails = true;
  host.step(shape);
  EXPECT_FALSE(host.done);
  host.memory_fails = false;
  EXPECT_EQ(host.step(shape), all);
  EXPECT_EQ(host.measured_steps, 3);
  EXPECT_LE(host.step(shape), budget);
  EXPECT_GT(host.step(shape, 4, true), all);  // one planned step fails: the plan stays
  EXPECT_LE(host.step(shape), budget);
  EXPECT_LT(host.recomputed(), 8);
  EXPECT_THAT(host.warnings, IsEmpty());
}

TEST(Controller, AnEvaluationsPeakIsNoneOfTheSteps) {
  const auto shape = layers(4, gradient_accumulation(1));
  const auto [all, none] = peaks(shape);
  Host host(none);
  for (int s = 0; s < 5; ++s) host.step(shape);
  for (int s = 0; s < 3; ++s) {
    host.controller->evaluates();
    host.spike_now(10 * none);
    EXPECT_LE(host.step(shape), none);
  }
  EXPECT_THAT(host.warnings, IsEmpty());
  EXPECT_EQ(host.measured_steps, 1);
}

TEST(Controller, LengthsAreMeasuredAndFromThreeOnPredicted) {
  const auto at = [](std::int64_t length) { return layers(5, gradient_accumulation(1), length); };
  const auto budget = peaks(at(16)).all + kMiB;
  Host host(budget);
  for (int s = 0; s < 2; ++s) host.step(at(4), 4);
  for (const std::int64_t length : {4, 6, 8}) host.step(at(length), length);
  EXPECT_EQ(host.measured_steps, 3);
  for (int s = 0; s < 50; ++s) {
    const auto length = 4 + 2 * (s % 5);
    EXPECT_LE(host.step(at(length), length), budget) << length;
  }
  EXPECT_LE(host.step(at(16), 16), budget);  // longer than all before
  EXPECT_LT(host.recomputed(), 6);
  EXPECT_EQ(host.measured_steps, 3);
  EXPECT_THAT(host.warnings, IsEmpty());
}

TEST(Controller, AShapeThatChangesInTheMiddleOfAStepRecomputesTheRest) {
  auto shape = layers(4, gradient_accumulation(2));
  const auto [all, none] = peaks(shape);
  Host host(none);
  for (int s = 0; s < 5; ++s) host.step(shape);
  EXPECT_EQ(host.recomputed(), 0);
  auto other = shape;
  for (auto& l : other.layers) l.x += 512;
  host.step(other);
  EXPECT_EQ(host.recomputed(), 8);
  EXPECT_THAT(host.lines.back(), HasSubstr("step 6: layer 1, microbatch 1 has an input of "));
  EXPECT_EQ(host.measured_steps, 1);
  host.step(other);
  EXPECT_EQ(host.measured_steps, 2);
}

TEST(Controller, MoreMicrobatchesThanMeasuredAreMeasured) {
  const auto two = layers(4, gradient_accumulation(2)), four = layers(4, gradient_accumulation(4));
  const auto budget = (peaks(two).all + peaks(two).none) / 2;
  Host host(budget);
  for (int s = 0; s < 5; ++s) EXPECT_LE(host.step(two), budget);
  host.step(four);
  EXPECT_THAT(host.lines.back(), HasSubstr("microbatch 3 was in no measured step"));
  host.step(two);  // without them: measured again
  host.step(four);
  EXPECT_EQ(host.measured_steps, 3);
  for (int s = 0; s < 3; ++s) {
    EXPECT_LE(host.step(four), budget);
    EXPECT_LE(host.step(two), budget);
  }
  EXPECT_EQ(host.measured_steps, 3);
}

TEST(Controller, RanksThatAgreeDecideAlike) {
  // Two ranks in lockstep: what one asks for is kept until the other does.
  const auto shape = layers(5, gradient_accumulation(1));
  auto heavy = shape;
  heavy.base += 40 * kMiB;
  const auto [all, none] = peaks(heavy);
  std::vector<std::vector<std::int64_t>> said;
  const auto budget = (all + none) / 2;
  Host light_alone(budget), heavy_alone(budget);
  for (int s = 0; s < 4; ++s) light_alone.step(shape), heavy_alone.step(heavy);
  EXPECT_NE(light_alone.last, heavy_alone.last);
  // The heavy rank's answers, as the maximum that the light one hears.
  Host recorded(budget, [&](Controller::World& world) {
    world.agree = [&](std::int64_t* values, std::size_t count) {
      said.emplace_back(values, values + count);
      return true;
    };
  });
  for (int s = 0; s < 4; ++s) recorded.step(heavy);
  ASSERT_EQ(said.size(), 5u);  // a step's end, and one more where it was measured
  std::size_t next = 0;
  Host light(budget, [&](Controller::World& world) {
    world.agree = [&](std::int64_t* values, std::size_t count) {
      const auto& other = said.at(next++);
      EXPECT_EQ(other.size(), count);
      for (std::size_t i = 0; i < count; ++i) values[i] = std::max(values[i], other[i]);
      return true;
    };
  });
  for (int s = 0; s < 4; ++s) light.step(shape);
  EXPECT_EQ(light.last, heavy_alone.last);
}

TEST(Controller, AStepThatIsNoneIsGivenUpOnWithASentence) {
  const auto shape = layers(3, gradient_accumulation(1));
  Host host(peaks(shape).none);
  // A part whose graph outlives every step: it is never released.
  for (int s = 0; s < 12; ++s) {
    host.controller->decide({}, 9, 1);
    if (host.controller->begins(9, RECOUP_MLP, 1, {2, 4, 64}, 5).measured) {
      host.controller->unit_begins(1000 + static_cast<std::uint64_t>(s), 9, "mlp", RECOUP_MLP, 1,
                                   {});
    }
    host.step(shape);
    EXPECT_EQ(host.recomputed(), 3);
  }
  EXPECT_THAT(host.warnings, ElementsAre(HasSubstr("the memory budget cannot be planned for: ")));
}

TEST(Controller, AfterCloseNothingOfTheHostIsCalled) {
  const auto shape = layers(3, gradient_accumulation(1));
  Host host(peaks(shape).none);
  for (int s = 0; s < 4; ++s) host.step(shape);
  host.controller->close();
  const auto queries = host.queries;
  host.controller->measure();
  EXPECT_FALSE(host.controller->step_end(false, false));
  EXPECT_EQ(host.queries, queries);
}

}  // namespace
}  // namespace recoup
