// Saved tensors that are kept because they are small, and what a recompute is compared with.
#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

// fc1, gelu, fc2, and an unpermute that saves the tokens' order: 8 bytes a row.
struct Moe {
  Moe() : mlp(std::make_shared<MlpImpl>(64, 128)), order(at::randperm(32, at::kLong)) {}
  Forward forward() const {
    return [*this](const Tensors& in) -> Tensors {
      const auto sorted = order.clone();  // made in the region, as a router's
      return {mlp->forward(in[0]).index_select(0, sorted)};
    };
  }
  Mlp mlp;
  at::Tensor order;
};

TEST(Kept, AnIndexLateInTheRegionDoesNotRepeatTheGemmBeforeIt) {
  torch::manual_seed(2);
  const Moe moe;
  const auto x = input({32, 64});
  expect_transparent(moe.forward(), {x}, moe.mlp->parameters());
  const auto addmms = [&](double keep_small, std::int64_t* held) {
    CheckpointOptions options;
    options.keep_small = keep_small;
    ActivationMeter meter(at::kCPU);
    const auto y = checkpoint(moe.forward(), {x}, options)[0];
    *held = meter.bytes() - y.numel() * 4;
    const KernelCounts counts;
    y.sum().backward();
    return counts.addmm.load();
  };
  std::int64_t held = 0;
  EXPECT_EQ(addmms(CheckpointOptions().keep_small, &held), 1);
  EXPECT_EQ(held, 32 * 8);
  EXPECT_EQ(addmms(0, &held), 2);
  EXPECT_EQ(held, 0);
}

TEST(Kept, AMaskAsLargeAsTheActivationIsRecomputed) {
  const auto x = input({32, 64});
  ActivationMeter meter(at::kCPU);
  const auto y = checkpoint(
      [](const Tensors& in) -> Tensors {
        return {std::get<0>(at::native_dropout(in[0], 0.5, true))};
      },
      {x})[0];
  EXPECT_EQ(meter.bytes(), y.numel() * 4);
}

TEST(Kept, AHostMayAskForMoreAndIsTold) {
  const auto mlp = seeded_mlp();
  const auto x = input({16, 8});
  struct Bytes : EventListener {
    void forward_ends(const RegionInfo& region) noexcept override { kept = region.kept_bytes; }
    std::int64_t kept = -1;
  };
  const auto bytes = std::make_shared<Bytes>();
  CheckpointOptions options;
  options.listener = bytes;
  options.keep_saved = [](const at::Tensor& t) {
    return t.size(-1) == 32 && t.dim() == 2 && t.size(0) == 16;
  };
  expect_same_bits(run(of(mlp), {x}, mlp->parameters(), nullptr),
                   run(of(mlp), {x}, mlp->parameters(), &options));
  EXPECT_EQ(bytes->kept, 2 * 16 * 32 * 4);  // the activation's input and output
  options.keep_saved = [](const at::Tensor&) { return true; };
  int calls = 0;
  checkpoint(
      [&](const at::Tensor& t) {
        ++calls;
        return mlp->forward(t);
      },
      x, options)
      .sum()
      .backward();
  EXPECT_EQ(calls, 1);  // nothing is left to recompute
}

TEST(Kept, ASmallTensorModifiedAfterwardsIsAnError) {
  auto scale = at::ones({1});
  const auto y =
      checkpoint([&](const at::Tensor& t) { return (t.sin() * scale).exp(); }, input({64, 64}));
  scale.add_(1);
  EXPECT_NE(error_of([&] { y.sum().backward(); }).find("modified by an in-place operation"),
            std::string::npos);
}

TEST(Kept, ASmallBufferThatTheForwardRefills) {
  const auto scale = at::ones({1});
  const auto refilling = [scale](const Tensors& in) -> Tensors {
    const auto h = in[0].sin();
    {
      const at::NoGradGuard no_grad;
      scale.copy_(h.abs().max());
    }
    return {(h * scale).exp()};
  };
  expect_transparent(refilling, {input({64, 64})});
  const auto x = input({64, 64});
  const auto y = checkpoint(refilling, {x})[0].sum();
  const auto first = torch::autograd::grad({y}, {x}, {}, true)[0];
  EXPECT_TRUE(same_bits(first, torch::autograd::grad({y}, {x}, {}, true)[0]));
}

// A router that takes another way in the recompute.
TEST(Kept, AnIndexThatTheRecomputeChangesIsAnError) {
  int calls = 0;
  CheckpointOptions options;
  options.name = "layer 2 mlp";
  const auto x = input({64, 64});
  const auto routed = [&](const at::Tensor& t) {
    const auto order = at::arange(64).roll(++calls);
    return (t.sin().index_select(0, order)).exp();
  };
  const auto error = error_of([&] { checkpoint(routed, x, options).sum().backward(); });
  EXPECT_NE(error.find("recoup: layer 2 mlp: saved tensor 1: the recompute has other values than "
                       "the forward's Long[64] on cpu"),
            std::string::npos)
      << error;
}

TEST(Check, ValuesThatDifferAreNamed) {
  int calls = 0;
  CheckpointOptions options;
  options.name = "layer 2 mlp";
  options.keep_small = 0;
  const auto changing = [&](const at::Tensor& t) {
    auto noise = at::zeros({100, 100});
    if (++calls > 1) noise[1][3] = 7;
    return (t * 2 + noise).exp().sin();
  };
  const auto error = [&](Check check) {
    calls = 0;
    options.check = check;
    return error_of([&] { checkpoint(changing, input({100, 100}), options).sum().backward(); });
  };
  EXPECT_EQ(error(Check::kShapes), "");
  const auto values = error(Check::kValues);
  EXPECT_NE(values.find("recoup: layer 2 mlp: saved tensor"), std::string::npos) << values;
  EXPECT_NE(
      values.find("(Float[100, 100] on cpu) 1 of its 3 blocks of 4096 values differ (block 0)"),
      std::string::npos)
      << values;
  const auto copy = error(Check::kCopy);
  EXPECT_NE(copy.find("1 of its 10000 values differ, the first at [1, 3]"), std::string::npos)
      << copy;
}

// Among them buffers that are saved before they are filled.
TEST(Check, ARightRecomputePasses) {
  const auto mlp = seeded_mlp(0.5);
  for (const auto check : {Check::kValues, Check::kCopy}) {
    CheckpointOptions options;
    options.check = check;
    expect_same_bits(run(of(mlp), {input()}, mlp->parameters(), nullptr),
                     run(of(mlp), {input()}, mlp->parameters(), &options));
    const Forward rrelu = [=](const Tensors& in) -> Tensors {
      return {at::rrelu(mlp->forward(in[0]), 0.1, 0.9, true) + 1};
    };
    expect_same_bits(run(rrelu, {input({64, 8})}, mlp->parameters(), nullptr),
                     run(rrelu, {input({64, 8})}, mlp->parameters(), &options));
  }
}

}  // namespace
}  // namespace recoup
