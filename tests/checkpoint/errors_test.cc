// What a checkpoint refuses, and that nothing of a failure stays behind.
#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

TEST(Errors, AnInputModifiedAfterForwardIsAnError) {
  const auto mlp = seeded_mlp();
  auto x = input() * 1;
  CheckpointOptions options;
  options.name = "layer 3 mlp";
  const auto y = checkpoint(of(mlp), {x}, options)[0];
  x.detach().add_(1);
  const auto error = error_of([&] { y.sum().backward(); });
  EXPECT_NE(error.find("recoup: layer 3 mlp: "), std::string::npos) << error;
  EXPECT_NE(error.find("modified by an in-place operation"), std::string::npos) << error;
  EXPECT_NE(error.find("[3, 5, 8]"), std::string::npos) << error;
}

TEST(Errors, AnInputThatNoOperationSavedIsCheckedToo) {
  auto x = input() * 1;
  const auto y =
      checkpoint([](const Tensors& in) -> Tensors { return {(in[0] + 1).exp()}; }, {x})[0];
  x.detach().add_(1);
  const auto error = error_of([&] { y.sum().backward(); });
  EXPECT_NE(error.find("input 0 (Float[3, 5, 8] on cpu) was modified by an in-place operation"),
            std::string::npos)
      << error;
}

TEST(Errors, AParameterModifiedAfterForwardIsAnError) {
  const auto mlp = seeded_mlp();
  const auto y = checkpoint(of(mlp), {input()})[0];
  {
    const at::NoGradGuard no_grad;
    mlp->fc1->weight.add_(1);
  }
  const auto error = error_of([&] { y.sum().backward(); });
  EXPECT_NE(error.find("modified by an in-place operation"), std::string::npos) << error;
}

// A bias is saved by nobody, and gives other gradients all the same where it is changed.
TEST(Errors, AParameterThatNobodySavedIsCheckedToo) {
  const auto mlp = seeded_mlp();
  CheckpointOptions options;
  options.name = "layer 3 mlp";
  const auto x = input();
  const auto change = [](at::Tensor t) {
    const at::NoGradGuard no_grad;
    t.add_(1);
  };
  auto y = checkpoint(of(mlp), {x}, options)[0];
  change(mlp->fc1->bias);
  const auto error = error_of([&] { y.sum().backward(); });
  EXPECT_EQ(
      error.find("recoup: layer 3 mlp: a tensor that the forward reads (Float[32] on cpu) was "
                 "modified by an in-place operation"),
      0u)
      << error;
  // Deep in a region, and in a region within.
  const auto nested = [&](const Tensors& in) -> Tensors {
    return {checkpoint(of(mlp), {in[0].sin()})[0].exp()};
  };
  y = checkpoint(nested, {x}, options)[0];
  change(mlp->fc1->bias);
  EXPECT_NE(error_of([&] { y.sum().backward(); }), "");
  // Another storage is lawful: what gathers and drops weights does that.
  y = checkpoint(of(mlp), {x})[0];
  mlp->fc1->bias.set_data(mlp->fc1->bias.clone());
  EXPECT_EQ(error_of([&] { y.sum().backward(); }), "");
  // What has no gradient is named.
  const auto frozen = seeded_mlp();
  for (auto& p : frozen->parameters()) p.set_requires_grad(false);
  const auto scale = torch::ones({8}, torch::requires_grad());
  const auto scaled = [=](const Tensors& in) -> Tensors {
    return {(frozen->forward(in[0]) * scale).exp()};
  };
  options.reads = frozen->parameters();
  y = checkpoint(scaled, {x.detach()}, options)[0];
  change(frozen->fc1->weight);
  EXPECT_NE(error_of([&] { y.sum().backward(); }).find("that the forward reads (Float[32, 8]"),
            std::string::npos);
}

// What comes before a region is not its own.
TEST(Errors, AParameterOfAnotherLayerMayChange) {
  const auto before = seeded_mlp(), mlp = seeded_mlp();
  const auto x = input();
  const auto h = before->forward(x);
  const auto y = checkpoint(of(mlp), {h})[0];
  {
    const at::NoGradGuard no_grad;
    before->fc1->bias.add_(1);
  }
  EXPECT_EQ(error_of([&] { y.sum().backward(); }), "");
}

TEST(Errors, WhatAutogradCannotRecomputeIsSaid) {
  CheckpointOptions options;
  options.name = "layer 3 mlp";
  const auto mlp = seeded_mlp();
  at::Tensor inference;
  {
    const c10::InferenceMode mode;
    inference = at::ones({3, 8});
  }
  EXPECT_NE(error_of([&] {
              checkpoint(of(mlp), {inference}, options);
            }).find("recoup: layer 3 mlp: input 0 is an inference tensor"),
            std::string::npos);
}

TEST(Errors, ARegionThatOverwritesWhatItSavedIsAnError) {
  const auto overwriting = [](const Tensors& in) -> Tensors {
    auto h = in[0].exp();
    h.add_(1);  // exp saved its result
    return {h * 2};
  };
  EXPECT_NE(error_of([&] { overwriting({input()})[0].sum().backward(); }),
            "");  // as stock autograd
  EXPECT_NE(error_of([&] {
              checkpoint(overwriting, {input()})[0].sum().backward();
            }).find("modified by an in-place operation"),
            std::string::npos);
}

TEST(Errors, AnInputReturnedModifiedInPlaceIsNoCycle) {
  std::weak_ptr<int> alive;
  {
    auto token = std::make_shared<int>(0);
    alive = token;
    auto x = input() * 1;
    const auto y =
        checkpoint([token](const Tensors& in) -> Tensors { return {in[0].exp_()}; }, {x})[0];
    token.reset();
    EXPECT_NE(error_of([&] { y.sum().backward(); }).find("in-place"), std::string::npos);
  }
  EXPECT_TRUE(alive.expired());
}

TEST(Errors, AnExceptionInTheRecomputePropagatesAndLeavesNothing) {
  const auto mlp = seeded_mlp();
  const auto x = input();
  int calls = 0;
  std::weak_ptr<int> alive;
  ActivationMeter meter(at::kCPU);
  {
    auto token = std::make_shared<int>(0);
    alive = token;
    const auto failing = [&calls, mlp, token](const Tensors& in) -> Tensors {
      const auto h = at::gelu(mlp->fc1(in[0]));
      if (++calls == 2) throw std::out_of_range("boom");
      return {mlp->fc2(h)};
    };
    const auto y = checkpoint(failing, {x})[0];
    token.reset();
    const auto before = meter.bytes();
    const auto loss = y.sum();
    EXPECT_THROW(loss.backward(torch::ones_like(loss), /*retain_graph=*/true), std::out_of_range);
    x.mutable_grad().reset();
    mlp->zero_grad();
    EXPECT_EQ(meter.bytes() - before, 4);  // the loss
    // The same graph works at the next try, and so does a new one.
    loss.backward();
    const auto expected = torch::autograd::grad({mlp->forward(x).sum()}, {x})[0];
    EXPECT_TRUE(same_bits(x.grad(), expected));
    x.mutable_grad().reset();
  }
  mlp->zero_grad();
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(meter.bytes(), 0);
  expect_transparent(of(mlp), {x}, mlp->parameters());
}

TEST(Errors, AnExceptionInTheForwardLeavesNothing) {
  const auto x = input();
  std::weak_ptr<int> alive;
  {
    auto token = std::make_shared<int>(0);
    alive = token;
    EXPECT_THROW(checkpoint(
                     [token](const Tensors& in) -> Tensors {
                       const auto h = in[0].exp();
                       throw std::out_of_range("boom");
                     },
                     {x}),
                 std::out_of_range);
  }
  EXPECT_TRUE(alive.expired());
  const auto y = x.exp();
  y.sum().backward();  // no hooks are left behind
  EXPECT_TRUE(same_bits(x.grad(), y.detach()));
}

TEST(Errors, AForwardThatCatchesEverythingStillEnds) {
  const auto mlp = seeded_mlp();
  const auto swallowing = [mlp](const Tensors& in) -> Tensors {
    try {
      return {mlp->forward(in[0])};
    } catch (const std::exception&) {
      return {in[0]};
    }
  };
  expect_transparent(swallowing, {input()}, mlp->parameters());
}

TEST(Errors, NonDeterminismNamesTheTensor) {
  int calls = 0;
  CheckpointOptions options;
  options.name = "layer 1 mlp";
  const auto backward = [&](const Forward& f) {
    calls = 0;
    return error_of([&] { checkpoint(f, {input({4, 8})}, options)[0].sum().backward(); });
  };
  const auto shape = backward([&](const Tensors& in) -> Tensors {
    return {(++calls == 1 ? in[0] : in[0].narrow(0, 0, 2)).exp()};
  });
  EXPECT_EQ(shape.find("recoup: layer 1 mlp: saved tensor 0: the forward saved Float[4, 8] on cpu, "
                       "the recompute Float[2, 8] on cpu, produced by ExpBackward0"),
            0u)
      << shape;
  const auto dtype = backward([&](const Tensors& in) -> Tensors {
    return {in[0].to(++calls == 1 ? at::kFloat : at::kDouble).exp()};
  });
  EXPECT_NE(dtype.find("the recompute Double[4, 8]"), std::string::npos) << dtype;
  const auto fewer = backward([&](const Tensors& in) -> Tensors {
    return {++calls == 1 ? in[0].exp().sin() : in[0].exp()};
  });
  EXPECT_NE(fewer.find("saves only 1 tensors, the forward 2"), std::string::npos) << fewer;
  options.early_stop = false;
  const auto more = backward([&](const Tensors& in) -> Tensors {
    return {++calls == 1 ? in[0].exp() : in[0].exp().sin()};
  });
  EXPECT_NE(more.find("saves more tensors than the forward's 1"), std::string::npos) << more;
}

TEST(Errors, DisabledHooksAreAClearError) {
  at::SavedTensorDefaultHooks::disable("because of a test");
  const auto error = error_of([&] { checkpoint(of(seeded_mlp()), {input()}); });
  at::SavedTensorDefaultHooks::enable();
  EXPECT_NE(error.find("saved tensor hooks are disabled: because of a test"), std::string::npos);
}

}  // namespace
}  // namespace recoup
