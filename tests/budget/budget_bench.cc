// How long a choice takes for 1,000 units of each kind.
#include <benchmark/benchmark.h>

#include "recoup/budget/choose.h"
#include "simulator.h"

namespace recoup::budget::testing {
namespace {

void choice(benchmark::State& state, std::size_t layers, bool alike, bool two_levels,
            const Schedule& schedule, bool pipeline) {
  Dice dice(1);
  auto shape = random_step(dice, layers, alike, schedule);
  shape.two_levels = two_levels;
  const Step step(shape);
  const auto model = Model::from(step.run(Decisions(step.units(), Level::kFull))).value();
  const auto plain = step.peak(model.kept()), full = step.peak(model.deepest());
  Options options;
  if (pipeline) options.pipeline = Pipeline{1};
  for (auto _ : state) {
    const auto c = choose(model, (plain + full) / 2, options);
    if (!c.fits) state.SkipWithError("no choice");
    state.counters["cost"] = static_cast<double>(c.prediction.cost_ns);
    benchmark::DoNotOptimize(c);
  }
}

void add(const char* name, std::size_t layers, bool alike, bool two_levels,
         const Schedule& schedule, bool pipeline = false) {
  benchmark::RegisterBenchmark(name, choice, layers, alike, two_levels, schedule, pipeline)
      ->Unit(benchmark::kMillisecond);
}

}  // namespace
}  // namespace recoup::budget::testing

int main(int argc, char** argv) {
  using namespace recoup::budget::testing;
  benchmark::Initialize(&argc, argv);
  add("1000 x 1 alike", 1000, true, false, gradient_accumulation(1));
  add("1000 x 1 alike, two levels", 1000, true, true, gradient_accumulation(1));
  add("1000 x 1 unlike", 1000, false, false, gradient_accumulation(1));
  add("1000 x 1 unlike, two levels", 1000, false, true, gradient_accumulation(1));
  add("100 x 10 accumulation", 100, false, true, gradient_accumulation(10));
  add("100 x 10, 4 in flight, alike", 100, true, false, one_f_one_b(10, 4));
  add("100 x 10, 4 in flight, unlike", 100, false, true, one_f_one_b(10, 4));
  add("25 x 40, 8 in flight, alike", 25, true, false, one_f_one_b(40, 8));
  add("25 x 40, 8 in flight, unlike", 25, false, true, one_f_one_b(40, 8));
  add("25 x 40, 8 in flight, pipeline rule", 25, true, false, one_f_one_b(40, 8), true);
  benchmark::RunSpecifiedBenchmarks();
}
