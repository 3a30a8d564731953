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

// Plain and checkpointed steps in turn, so that both see the same machine; medians as counters.
void SideBySide(benchmark::State& state) {
  torch::set_num_threads(1);
  Mlp mlp(state.range(1));
  const auto x = at::randn({state.range(0), state.range(1)}).set_requires_grad(true);
  const auto microseconds = [&](bool checkpointed) {
    const auto start = std::chrono::steady_clock::now();
    const auto y = checkpointed
                       ? recoup::checkpoint([&](const at::Tensor& in) { return mlp(in); }, x)
                       : mlp(x);
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
  std::vector<double> plain, checkpointed, recompute;
  for (auto _ : state) {
    plain.push_back(microseconds(false));
    checkpointed.push_back(microseconds(true));
    recompute.push_back(bare_recompute());
  }
  const auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
  };
  state.counters["plain_us"] = median(plain);
  state.counters["checkpointed_us"] = median(checkpointed);
  state.counters["recompute_us"] = median(recompute);
}

// {rows, hidden size}
BENCHMARK(SideBySide)->Args({8, 16})->Args({512, 512})->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
