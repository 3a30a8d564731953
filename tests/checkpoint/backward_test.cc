// Backwards of every kind: retained, partial, second-order, nested.
#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

TEST(Backward, RetainGraphAndASecondBackward) {
  const auto mlp = seeded_mlp(0.5);
  const auto x = input();
  int calls = 0;
  const auto counted = [&calls, mlp](const Tensors& in) -> Tensors {
    ++calls;
    return {mlp->forward(in[0])};
  };
  ActivationMeter meter(at::kCPU);
  auto y = checkpoint(counted, {x})[0];
  const auto before = meter.bytes();
  const auto first = torch::autograd::grad({y.sum()}, {x}, {}, /*retain_graph=*/true)[0];
  EXPECT_EQ(meter.bytes() - before, first.numel() * 4);  // nothing recomputed is retained
  const auto second = torch::autograd::grad({y.sum()}, {x}, {}, /*retain_graph=*/true)[0];
  EXPECT_TRUE(same_bits(first, second));
  EXPECT_EQ(calls, 3);  // once a backward
  y.sum().backward();
  EXPECT_TRUE(same_bits(first, x.grad()));
  EXPECT_EQ(calls, 4);
  EXPECT_NE(error_of([&] { y.sum().backward(); }).find("second time"), std::string::npos);
}

// Of a retained graph, too, only what is being read is there at any time.
TEST(Backward, RetainedGraphsPeakAsOthers) {
  constexpr std::int64_t kUnit = 256 * 64 * 4;
  const auto peak = [&](bool retain, const Forward& forward) {
    auto h = input({256, 64});
    ActivationMeter meter(at::kCPU);
    for (int layer = 0; layer < 24; ++layer) h = h + checkpoint(forward, {h})[0];
    const auto loss = h.sum();
    const auto held = meter.bytes();
    loss.backward({}, retain);
    return static_cast<double>(meter.peak_bytes() - held) / kUnit;
  };
  const Forward gelu = [](const Tensors& in) -> Tensors { return {at::gelu(in[0] * 2)}; };
  EXPECT_LE(peak(true, gelu), peak(false, gelu) + 2);
  torch::manual_seed(2);
  const auto mlp = std::make_shared<MlpImpl>(64, 256);
  const Forward scaled = [mlp](const Tensors& in) -> Tensors { return {mlp->forward(in[0] * 2)}; };
  run(scaled, {input({4, 64})}, mlp->parameters(), nullptr);  // so that gradients are there
  EXPECT_LE(peak(true, scaled), peak(false, scaled) + 2);
}

TEST(Backward, PartialBackwardsRecomputeWhatTheyNeed) {
  const auto mlp = seeded_mlp();
  const auto x = input();
  const auto y = checkpoint(of(mlp), {x})[0];
  ActivationMeter meter(at::kCPU);
  const auto parts = torch::autograd::grad({y.sum()}, {mlp->fc2->weight}, {}, true);
  EXPECT_EQ(meter.bytes(), parts[0].numel() * 4);  // what it recomputed and did not read is gone
  const auto plain = torch::autograd::grad({mlp->forward(x).sum()}, {mlp->fc2->weight});
  EXPECT_TRUE(same_bits(parts[0], plain[0]));
  EXPECT_TRUE(same_bits(torch::autograd::grad({y.sum()}, {x})[0],
                        torch::autograd::grad({mlp->forward(x).sum()}, {x})[0]));
}

TEST(Backward, DoubleBackward) {
  const auto forward = [](const Tensors& in) -> Tensors {
    return {(in[0].sin() * in[0].exp()).tanh() * in[1]};
  };
  const auto second_order = [&](bool checkpointed) {
    const auto x = input({6}), w = (input({6}) + 1).detach().set_requires_grad(true);
    const auto y = checkpointed ? checkpoint(forward, {x, w})[0] : forward({x, w})[0];
    const auto g = torch::autograd::grad({y.sum()}, {x}, {}, true, /*create_graph=*/true)[0];
    (g * g).sum().backward();
    return Results{g.detach(), x.grad(), w.grad()};
  };
  expect_same_bits(second_order(false), second_order(true));
}

TEST(Backward, DoubleBackwardThroughTheMlp) {
  const auto mlp = seeded_mlp();
  const auto penalty = [&](bool checkpointed) {
    mlp->zero_grad();
    const auto x = input();
    const auto y = checkpointed ? checkpoint(of(mlp), {x})[0] : mlp->forward(x);
    const auto g = torch::autograd::grad({y.pow(2).sum()}, {x}, {}, true, true)[0];
    (g.pow(2).sum() + y.sum()).backward();
    Results results{x.grad()};
    for (const auto& p : mlp->parameters()) results.push_back(p.grad().clone());
    return results;
  };
  expect_same_bits(penalty(false), penalty(true));
}

TEST(Backward, Nested) {
  const auto inner = seeded_mlp(0.3), outer = seeded_mlp(0.3);
  const auto forward = [=](const Tensors& in) -> Tensors {
    auto h = checkpoint(of(inner), {in[0].sin()})[0];
    h = checkpoint([](const Tensors& i) -> Tensors { return {i[0].exp()}; }, {h.tanh()})[0];
    return {outer->forward(h)};
  };
  const auto plain = [=](const Tensors& in) -> Tensors {
    return {outer->forward(inner->forward(in[0].sin()).tanh().exp())};
  };
  auto parameters = inner->parameters();
  for (const auto& p : outer->parameters()) parameters.push_back(p);
  const CheckpointOptions options;
  expect_same_bits(run(plain, {input()}, parameters, nullptr),
                   run(forward, {input()}, parameters, &options));
  const auto x = input({16, 8});
  ActivationMeter meter(at::kCPU);
  const auto y = checkpoint(forward, {x})[0];
  EXPECT_EQ(meter.bytes(), y.numel() * 4);  // the inner regions' inputs are dropped as well
}

// The outer recompute ends where the last inner region would begin: k forwards, k - 1 in the outer
// recompute, k in the inner ones.
TEST(Backward, NestedRegionsRunNoForwardTooMany) {
  for (const int k : {1, 4, 16}) {
    int calls = 0;
    const auto w = torch::eye(8).set_requires_grad(true);
    const auto inner = [&](const Tensors& in) -> Tensors {
      ++calls;
      return {at::gelu(in[0].mm(w))};
    };
    const auto outer = [&](const Tensors& in) -> Tensors {
      auto h = in[0];
      for (int i = 0; i < k; ++i) h = checkpoint(inner, {h.sin()})[0];
      return {h};
    };
    const auto x = (input({4, 8}) * 0.01).detach().set_requires_grad(true);
    const auto y = checkpoint(outer, {x})[0];
    EXPECT_EQ(calls, k);
    const auto g = torch::autograd::grad({y.sum()}, {x})[0];
    EXPECT_EQ(calls - k, 2 * k - 1);
    auto h = x;
    for (int i = 0; i < k; ++i) h = at::gelu(h.sin().mm(w));
    EXPECT_TRUE(same_bits(g, torch::autograd::grad({h.sum()}, {x})[0]));
  }
}

TEST(Backward, NestedThreeDeepWithTheInnerLast) {
  const auto mlp = seeded_mlp(0.5);
  const auto inner = [=](const Tensors& in) { return checkpoint(of(mlp), in); };
  const auto middle = [=](const Tensors& in) { return checkpoint(inner, {in[0] * 2}); };
  const auto plain = [=](const Tensors& in) -> Tensors { return {mlp->forward(in[0] * 2)}; };
  const CheckpointOptions options;
  expect_same_bits(run(plain, {input()}, mlp->parameters(), nullptr),
                   run(middle, {input()}, mlp->parameters(), &options));
}

TEST(Backward, ABackwardWithinTheRegion) {
  expect_transparent(
      [](const Tensors& in) -> Tensors {
        const auto x = in[0].detach().set_requires_grad(true);
        const auto g = torch::autograd::grad({x.exp().sin().sum()}, {x})[0];
        return {in[0].tanh() * g};
      },
      {input()});
}

}  // namespace
}  // namespace recoup
