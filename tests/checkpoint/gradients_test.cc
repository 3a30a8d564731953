// What a checkpoint gives and saves: gradients bit for bit, bytes to the byte, counts of kernels.
#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

TEST(Gradients, GradientsAreBitEqual) {
  const auto mlp = seeded_mlp();
  expect_transparent(of(mlp), {input()}, mlp->parameters());
  expect_transparent(of(mlp), {input({5, 8})}, mlp->parameters());
}

TEST(Gradients, DropoutDrawsTheSameNumbers) {
  const auto mlp = seeded_mlp(0.5);
  expect_transparent(of(mlp), {input()}, mlp->parameters());
  // The generator goes on after backward as if nothing had been recomputed.
  const auto next = [&](bool checkpointed) {
    torch::manual_seed(3);
    const auto x = input();
    torch::manual_seed(4);
    auto y = checkpointed ? checkpoint(of(mlp), {x})[0] : of(mlp)({x})[0];
    at::randn({3});
    y.sum().backward();
    return at::randn({4});
  };
  EXPECT_TRUE(same_bits(next(false), next(true)));
}

TEST(Gradients, NormalSamplesKeptInTheGeneratorAreRestored) {
  const auto noisy = [](const Tensors& in) -> Tensors {
    return {in[0] * at::randn({1}) * at::randn({3, 5, 8})};
  };
  torch::manual_seed(5);
  at::randn({1});
  expect_transparent(noisy, {input()});
}

TEST(Gradients, SavedBytesAreTheInputsOnly) {
  const auto mlp = seeded_mlp();
  const auto x = input({16, 8});
  const auto run = [&](bool checkpointed, bool frozen_input) {
    const auto leaf = frozen_input ? x.detach() : x;
    ActivationMeter meter(at::kCPU);
    auto h = leaf * 2;  // the region's input, made here: 16 x 8 floats
    auto y = checkpointed ? checkpoint(of(mlp), {h})[0] : of(mlp)({h})[0];
    const auto output = y.numel() * 4;
    h.reset();
    const auto saved = meter.bytes() - output;
    y.sum().backward();
    y.reset();
    mlp->zero_grad();
    x.mutable_grad().reset();
    EXPECT_EQ(meter.bytes(), 0);  // nothing leaks
    return saved;
  };
  const std::int64_t in = 16 * 8 * 4, ffn = 16 * 32 * 4;
  EXPECT_EQ(run(false, false), in + 2 * ffn);  // fc1's input, gelu's input, fc2's input
  EXPECT_EQ(run(true, false), in);
  EXPECT_EQ(run(true, true), in);  // parameters need grad, the input does not
}

TEST(Gradients, RngStateIsNoTensorMemory) {
  const auto mlp = seeded_mlp(0.5);
  const auto x = input({16, 8});
  ActivationMeter meter(at::kCPU);
  const auto y = checkpoint(of(mlp), {x})[0];
  EXPECT_EQ(meter.bytes(), y.numel() * 4);
}

TEST(Gradients, NeverRepeatsTheLastGemm) {
  const auto mlp = seeded_mlp();
  const auto x = input({16, 8});
  const auto y = checkpoint(of(mlp), {x})[0];
  {
    const KernelCounts counts;
    y.sum().backward();
    EXPECT_EQ(counts.addmm, 1);  // fc1 again, not fc2
    EXPECT_EQ(counts.gelu, 1);
    EXPECT_EQ(counts.mm, 4);  // backward's own: two for each linear
  }
  CheckpointOptions to_the_end;
  to_the_end.early_stop = false;
  const auto z = checkpoint(of(mlp), {x}, to_the_end)[0];
  const KernelCounts counts;
  z.sum().backward();
  EXPECT_EQ(counts.addmm, 2);
}

TEST(Gradients, StopsBeforeTheLastGemmOfAFrozenWeightToo) {
  const auto mlp = seeded_mlp();
  mlp->fc2->weight.set_requires_grad(false);
  const auto x = input({16, 8});
  const auto y = checkpoint(of(mlp), {x})[0];
  const KernelCounts counts;
  y.sum().backward();
  EXPECT_EQ(counts.addmm, 1);
}

TEST(Gradients, RecomputesOnceABackward) {
  const auto mlp = seeded_mlp();
  int calls = 0;
  const auto counted = [&calls, mlp](const Tensors& in) -> Tensors {
    ++calls;
    return {mlp->forward(in[0])};
  };
  const auto y = checkpoint(counted, {input()})[0];
  EXPECT_EQ(calls, 1);
  y.sum().backward();
  EXPECT_EQ(calls, 2);
}

// Without it a forward that draws no random numbers is as right, and one that does draws others.
TEST(Gradients, GeneratorsAreLeftAloneOnRequest) {
  const auto mlp = seeded_mlp();
  CheckpointOptions options;
  options.preserve_rng = false;
  expect_same_bits(run(of(mlp), {input()}, mlp->parameters(), nullptr),
                   run(of(mlp), {input()}, mlp->parameters(), &options));
  const auto x = input({64});
  const auto noisy = [](const at::Tensor& t) { return (t * at::randn({64})).sin(); };
  at::Tensor seen[2];
  for (const bool preserve : {true, false}) {
    options.preserve_rng = preserve;
    torch::manual_seed(5);
    const auto y = checkpoint(noisy, x, options);
    seen[preserve] = torch::autograd::grad({y.sum()}, {x})[0];
  }
  torch::manual_seed(5);
  const auto expected = torch::autograd::grad({noisy(x).sum()}, {x})[0];
  EXPECT_TRUE(same_bits(seen[true], expected));
  EXPECT_FALSE(same_bits(seen[false], expected));
}

TEST(Gradients, NoGradModeIsAPlainCall) {
  const auto mlp = seeded_mlp();
  const auto x = input();
  const at::NoGradGuard no_grad;
  const auto expected = mlp->forward(x);
  std::weak_ptr<int> alive;
  auto token = std::make_shared<int>(0);
  alive = token;
  const auto y = checkpoint([mlp, token = std::move(token)](
                                const Tensors& in) -> Tensors { return {mlp->forward(in[0])}; },
                            {x})[0];
  EXPECT_TRUE(alive.expired());  // the forward is not kept
  EXPECT_FALSE(y.requires_grad());
  EXPECT_TRUE(same_bits(y, expected));
}

TEST(Gradients, NothingToDifferentiateKeepsNothing) {
  std::weak_ptr<int> alive;
  {
    auto token = std::make_shared<int>(0);
    alive = token;
    const auto y = checkpoint([token](const Tensors& in) -> Tensors { return {in[0].exp()}; },
                              {at::randn({4})})[0];
    token.reset();
    EXPECT_FALSE(y.requires_grad());
    EXPECT_TRUE(alive.expired());  // the forward is gone before its output is
  }
}

TEST(Gradients, SeveralInputsAndOutputs) {
  const auto forward = [](const Tensors& in) -> Tensors {
    const auto a = in[0] * in[1];
    return {a.sin(), at::Tensor(), (a + in[2]).exp(), in[3].defined() ? a : a.cos(), at::arange(3)};
  };
  auto a = input({4, 3}), b = at::randn({4, 3}), c = input({1, 3}).detach().set_requires_grad(true);
  CheckpointOptions options;
  const auto outputs = checkpoint(forward, {a, b, c, at::Tensor()}, options);
  ASSERT_EQ(outputs.size(), 5u);
  EXPECT_FALSE(outputs[1].defined());
  (outputs[0].sum() + outputs[2].sum() + outputs[3].sum()).backward();
  const auto ga = a.grad().clone(), gc = c.grad().clone();
  a.mutable_grad().reset(), c.mutable_grad().reset();
  const auto plain = forward({a, b, c, at::Tensor()});
  (plain[0].sum() + plain[2].sum() + plain[3].sum()).backward();
  EXPECT_TRUE(same_bits(ga, a.grad()));
  EXPECT_TRUE(same_bits(gc, c.grad()));
  EXPECT_FALSE(b.grad().defined());
}

// Megatron's MLP returns its bias parameter as a second output, left for a later fusion.
TEST(Gradients, AnOutputMayBeAParameter) {
  const auto mlp = seeded_mlp();
  const auto forward = [mlp](const Tensors& in) -> Tensors {
    const auto h = at::gelu(mlp->fc1(in[0]));
    return {at::linear(h, mlp->fc2->weight), mlp->fc2->bias};
  };
  const auto x = input();
  const auto outputs = checkpoint(forward, {x});
  EXPECT_TRUE(outputs[1].is_same(mlp->fc2->bias));
  EXPECT_TRUE(outputs[1].is_leaf());
  const auto both = [](const Tensors& o) { return ((o[0] + o[1]) * o[0]).sum(); };
  both(outputs).backward();
  Results got{x.grad().clone()};
  for (const auto& p : mlp->parameters()) got.push_back(p.grad().clone());
  x.mutable_grad().reset();
  mlp->zero_grad();
  both(forward({x})).backward();
  Results expected{x.grad()};
  for (const auto& p : mlp->parameters()) expected.push_back(p.grad());
  expect_same_bits(got, expected);
}

TEST(Gradients, InPlaceOperationsWithinTheRegionWork) {
  expect_transparent(
      [](const Tensors& in) -> Tensors {
        auto h = in[0] * 2;
        h.add_(1).relu_();
        auto g = h * in[0];
        return {g.mul_(2).sigmoid_()};
      },
      {input()});
}

TEST(Gradients, ManyStepsTrainAsWithout) {
  const auto train = [&](bool checkpointed) {
    const auto mlp = seeded_mlp(0.2);
    torch::optim::AdamW optimizer(mlp->parameters());
    torch::manual_seed(11);
    Results losses;
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      const auto x = at::randn({4, 8});
      auto h = x;
      for (int layer = 0; layer < 3; ++layer) {
        h = h + (checkpointed ? checkpoint(of(mlp), {h})[0] : mlp->forward(h));
      }
      const auto loss = h.pow(2).mean();
      loss.backward();
      optimizer.step();
      losses.push_back(loss.detach());
    }
    return losses;
  };
  expect_same_bits(train(false), train(true));
}

}  // namespace
}  // namespace recoup
