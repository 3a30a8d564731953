#include <chrono>
#include <thread>

#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

TEST(Threads, EachItsOwnModel) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&wrong, t] {
      const auto x = torch::full({4, 8}, 0.1 * (t + 1), torch::requires_grad());
      const auto w = torch::full({8, 8}, 0.05, torch::requires_grad());
      for (int step = 0; step < 20; ++step) {
        const auto f = [w](const Tensors& in) -> Tensors { return {at::gelu(in[0].mm(w)).mm(w)}; };
        const auto got = torch::autograd::grad({checkpoint(f, {x})[0].sum()}, {x, w});
        const auto expected = torch::autograd::grad({f({x})[0].sum()}, {x, w});
        if (!same_bits(got[0], expected[0]) || !same_bits(got[1], expected[1])) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Several backwards of one retained graph at once: slots are shared, results must not be.
TEST(Threads, OneRetainedGraph) {
  const auto x = torch::full({4, 8}, 0.1, torch::requires_grad());
  const auto w = torch::full({8, 8}, 0.05, torch::requires_grad());
  const auto f = [w](const Tensors& in) -> Tensors { return {at::gelu(in[0].mm(w)).mm(w)}; };
  const auto expected = torch::autograd::grad({f({x})[0].sum()}, {x, w});
  const auto loss = checkpoint(f, {x})[0].sum();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int step = 0; step < 20; ++step) {
        const auto got = torch::autograd::grad({loss}, {x, w}, {}, /*retain_graph=*/true);
        if (!same_bits(got[0], expected[0]) || !same_bits(got[1], expected[1])) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Who comes while another thread recomputes the region waits for it, and is not let in.
TEST(Threads, OneRecomputeOfARegionAtATime) {
  std::atomic<int> runs{0};
  std::atomic<bool> inside{false}, met{false};
  const auto f = [&](const Tensors& in) -> Tensors {
    if (++runs > 1) {
      if (inside.exchange(true)) {
        met = true;
        throw std::runtime_error("two recomputes at once");
      }
      for (int i = 0; i < 100 && !met; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      inside = false;
    }
    return {(in[0] * 2).sin(), (in[0] * 2).cos()};
  };
  const auto x = torch::full({4, 8}, 0.1, torch::requires_grad());
  const auto outputs = checkpoint(f, {x});
  const auto backward = [&](int output) {  // of a node each: autograd locks a node while it runs
    try {
      torch::autograd::grad({outputs[output].sum()}, {x}, {}, /*retain_graph=*/true);
    } catch (const std::exception&) {  // only where they met
    }
  };
  std::thread first(backward, 0), second(backward, 1);
  first.join();
  second.join();
  EXPECT_GT(runs, 1);
  EXPECT_FALSE(met);
}

// Forward in one thread, backward in others; recomputes that draw random numbers exclude each
// other.
TEST(Threads, BackwardElsewhereWithDropout) {
  const auto w = torch::full({8, 8}, 0.05, torch::requires_grad());
  std::vector<at::Tensor> xs, losses, expected;
  const auto f = [w](const Tensors& in) -> Tensors {
    auto h = in[0];
    for (int i = 0; i < 3; ++i) {
      h = at::dropout(h.mm(w), 0.5, true);
      // The other threads' turn, were they let in.
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
    return {h.mm(w)};
  };
  torch::manual_seed(1);
  for (int i = 0; i < 6; ++i) {
    xs.push_back(torch::full({64, 8}, 0.1 * (i + 1), torch::requires_grad()));
    expected.push_back(torch::autograd::grad({f({xs[i]})[0].sum()}, {xs[i]})[0]);
  }
  torch::manual_seed(1);
  for (int i = 0; i < 6; ++i) losses.push_back(checkpoint(f, {xs[i]})[0].sum());
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      if (!same_bits(torch::autograd::grad({losses[i]}, {xs[i]})[0], expected[i])) ++wrong;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace recoup
