// What a checkpoint costs: the same MLP forward and backward, plain and checkpointed, side by side.
// A tiny MLP shows the overhead of a call, a large one the price of the recompute itself.
#include <benchmark/benchmark.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "recoup/checkpoint/checkpoint.h"

namespace {

struct Mlp {
  explicit Mlp(std::int64_t hidden) : fc1(hidden, 4 * hidden), fc2(4 * hidden, hidden) {}
  at::Tensor operator()(const at::Tensor& x) { return fc2(at::gelu(fc1(x))); }
  torch::nn::Linear fc1, fc2;
};

// Steps of each kind in turn, so that all see the same machine; medians as counters.
void SideBySide(benchmark::State& state) {
  torch::set_num_threads(1);
  Mlp mlp(state.range(1));
  const auto x = at::randn({state.range(0), state.range(1)}).set_requires_grad(true);
  enum Kind { kPlain, kOnePart, kTwoParts };
  const recoup::Forward first = [&](const recoup::Tensors& in) -> recoup::Tensors {
    return {at::gelu(mlp.fc1(in[0]))};
  };
  const recoup::Forward rest = [&](const recoup::Tensors& in) -> recoup::Tensors {
    return {mlp.fc2(in[0])};
  };
  const auto microseconds = [&](Kind kind) {
    const auto start = std::chrono::steady_clock::now();
    const auto y = kind == kPlain ? mlp(x)
                   : kind == kOnePart
                       ? recoup::checkpoint([&](const at::Tensor& in) { return mlp(in); }, x)
                       : recoup::checkpoint_parts(first, rest, {x})[0];
    y.sum().backward();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
        .count();
  };
  // What every checkpoint of this MLP must repeat: fc1 and the activation, with history.
  const auto bare_recompute = [&] {
    const auto start = std::chrono::steady_clock::now();
    benchmark::DoNotOptimize(at::gelu(mlp.fc1(x.detach().requires_grad_())).data_ptr());
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
        .count();
  };
  std::vector<double> plain, checkpointed, in_parts, recompute;
  for (auto _ : state) {
    plain.push_back(microseconds(kPlain));
    checkpointed.push_back(microseconds(kOnePart));
    in_parts.push_back(microseconds(kTwoParts));
    recompute.push_back(bare_recompute());
  }
  const auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
  };
  state.counters["plain_us"] = median(plain);
  state.counters["checkpointed_us"] = median(checkpointed);
  state.counters["in_parts_us"] = median(in_parts);
  state.counters["recompute_us"] = median(recompute);
}

// {rows, hidden size}
BENCHMARK(SideBySide)->Args({8, 16})->Args({512, 512})->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
