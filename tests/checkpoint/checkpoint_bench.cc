// What a checkpoint costs: the same MLP forward and backward, plain and checkpointed, side by side.
// A tiny MLP shows the overhead of a call, a large one the price of the recompute itself.
#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include "recoup/checkpoint.h"

namespace {

struct Mlp {
  explicit Mlp(std::int64_t hidden) : fc1(hidden, 4 * hidden), fc2(4 * hidden, hidden) {}
  at::Tensor operator()(const at::Tensor& x) { return fc2(at::gelu(fc1(x))); }
  torch::nn::Linear fc1, fc2;
};

void step(benchmark::State& state, bool checkpointed, bool grad) {
  torch::set_num_threads(1);
  const at::AutoGradMode mode(grad);
  Mlp mlp(state.range(1));
  const auto x = at::randn({state.range(0), state.range(1)}).set_requires_grad(grad);
  for (auto _ : state) {
    const auto y = checkpointed
                       ? recoup::checkpoint([&](const at::Tensor& in) { return mlp(in); }, x)
                       : mlp(x);
    if (grad) y.sum().backward();
    benchmark::DoNotOptimize(y.data_ptr());
  }
}

void Plain(benchmark::State& state) { step(state, false, true); }
void Checkpointed(benchmark::State& state) { step(state, true, true); }
void PlainNoGrad(benchmark::State& state) { step(state, false, false); }
void CheckpointedNoGrad(benchmark::State& state) { step(state, true, false); }

// {rows, hidden size}
BENCHMARK(Plain)->Args({8, 16})->Args({512, 512})->Unit(benchmark::kMicrosecond);
BENCHMARK(Checkpointed)->Args({8, 16})->Args({512, 512})->Unit(benchmark::kMicrosecond);
BENCHMARK(PlainNoGrad)->Args({8, 16})->Unit(benchmark::kMicrosecond);
BENCHMARK(CheckpointedNoGrad)->Args({8, 16})->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
