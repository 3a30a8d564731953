// checkpoint_parts(): the part that follows is never run again, and nothing else changes.
#include <ATen/autocast_mode.h>

#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

struct Parts {
  Forward first, rest;
  Tensors parameters;
  Forward whole() const {
    return [first = first, rest = rest](const Tensors& in) { return rest(first(in)); };
  }
};

Parts mlp_parts(double dropout_after = 0.0, bool frozen = false) {
  const auto mlp = seeded_mlp();
  if (frozen) mlp->fc2->weight.set_requires_grad(false);
  return {[mlp](const Tensors& in) -> Tensors { return {at::gelu(mlp->fc1(in[0]))}; },
          [mlp, dropout_after](const Tensors& in) -> Tensors {
            return {at::dropout(mlp->fc2(in[0]), dropout_after, dropout_after > 0)};
          },
          mlp->parameters()};
}

Parts swiglu_parts() {
  torch::manual_seed(2);
  const auto gate = torch::randn({8, 32}, torch::requires_grad());
  const auto up = torch::randn({8, 32}, torch::requires_grad());
  const auto down = torch::randn({32, 8}, torch::requires_grad());
  return {[=](const Tensors& in) -> Tensors {
            const auto x = in[0].reshape({-1, 8});
            return {at::silu(x.mm(gate)) * x.mm(up)};
          },
          [=](const Tensors& in) -> Tensors { return {in[0].mm(down)}; },
          {gate, up, down}};
}

// Outputs and gradients of a run in parts, as testing::run gives them.
Results run_parts(const Parts& parts, const Tensors& inputs, int* first_runs = nullptr,
                  int* rest_runs = nullptr) {
  const auto count = [](const Forward& f, int* runs) -> Forward {
    return [f, runs](const Tensors& in) {
      if (runs != nullptr) ++*runs;
      return f(in);
    };
  };
  return run(
      [&](const Tensors& in) {
        return checkpoint_parts(count(parts.first, first_runs), count(parts.rest, rest_runs), in);
      },
      inputs, parts.parameters, nullptr);
}

TEST(Parts, GradientsAreBitEqualAndTheRestRunsOnce) {
  for (const auto& parts : {mlp_parts(), mlp_parts(0, /*frozen=*/true), swiglu_parts()}) {
    for (const auto& sizes : {std::vector<std::int64_t>{16, 8}, {3, 5, 8}}) {
      int first = 0, rest = 0;
      expect_same_bits(run(parts.whole(), {input(sizes)}, parts.parameters, nullptr),
                       run_parts(parts, {input(sizes)}, &first, &rest));
      EXPECT_EQ(first, 2);
      EXPECT_EQ(rest, 1);
    }
  }
}

TEST(Parts, HeldBytesAreThoseOfOnePart) {
  for (const auto& parts : {mlp_parts(), mlp_parts(0.5), swiglu_parts()}) {
    for (const auto& sizes : {std::vector<std::int64_t>{16, 8}, {3, 5, 8}}) {
      const auto x = input(sizes);
      const auto held = [&](bool in_parts) {
        ActivationMeter meter(at::kCPU);
        const auto y = in_parts ? checkpoint_parts(parts.first, parts.rest, {x})
                                : checkpoint(parts.whole(), {x});
        return meter.bytes();
      };
      EXPECT_EQ(held(true), held(false));
    }
  }
}

TEST(Parts, NoKernelOfTheRestRunsAgain) {
  const auto parts = mlp_parts();
  const auto y = checkpoint_parts(parts.first, parts.rest, {input({16, 8})})[0];
  const KernelCounts counts;
  y.sum().backward();
  EXPECT_EQ(counts.addmm, 1);
  EXPECT_EQ(counts.gelu, 1);
}

// What the rest makes itself cannot be found again: both parts run, with early stop.
TEST(Parts, ADropoutInTheRestMakesItOnePart) {
  const auto parts = mlp_parts(0.5);
  int first = 0, rest = 0;
  expect_same_bits(run(parts.whole(), {input()}, parts.parameters, nullptr),
                   run_parts(parts, {input()}, &first, &rest));
  EXPECT_EQ(rest, 2);
}

TEST(Parts, AutocastsCopyOfTheWeightMakesItOnePart) {
  const auto parts = mlp_parts();
  const auto cast = [&](bool in_parts) {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::increment_nesting();
    const auto x = input();
    ActivationMeter meter(at::kCPU);
    auto y = in_parts ? checkpoint_parts(parts.first, parts.rest, {x})[0] : parts.whole()({x})[0];
    at::autocast::set_autocast_enabled(at::kCPU, false);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    if (in_parts) {
      EXPECT_EQ(meter.bytes(), y.numel() * 2);  // the output
    }
    return torch::autograd::grad({y.to(at::kFloat).pow(2).sum()},
                                 {x, parts.parameters[0], parts.parameters[2]});
  };
  expect_same_bits(cast(false), cast(true));
}

TEST(Parts, AnActivationModifiedInTheRestIsRight) {
  const auto parts = mlp_parts();
  const auto rest = [rest = parts.rest](const Tensors& in) { return rest({in[0].mul_(2)}); };
  const Parts changed{
      [first = parts.first](const Tensors& in) -> Tensors { return {first(in)[0] + 1}; }, rest,
      parts.parameters};
  expect_same_bits(run(changed.whole(), {input()}, parts.parameters, nullptr),
                   run_parts(changed, {input()}));
}

TEST(Parts, RetainedGraphsDoubleBackwardAndNesting) {
  const auto parts = mlp_parts();
  const auto x = input();
  const auto y = checkpoint_parts(parts.first, parts.rest, {x})[0].pow(2).sum();
  const auto first = torch::autograd::grad({y}, {x}, {}, /*retain_graph=*/true)[0];
  EXPECT_TRUE(same_bits(first, torch::autograd::grad({y}, {x}, {}, true)[0]));
  const auto penalty = [&](bool in_parts) {
    const auto out =
        in_parts ? checkpoint_parts(parts.first, parts.rest, {x})[0] : parts.whole()({x})[0];
    const auto g = torch::autograd::grad({out.pow(2).sum()}, {x}, {}, true, true)[0];
    return torch::autograd::grad({g.pow(2).sum()}, {x, parts.parameters[0]});
  };
  expect_same_bits(penalty(false), penalty(true));
  const Forward inner = [=](const Tensors& in) {
    return checkpoint_parts(parts.first, parts.rest, {in[0].sin()});
  };
  const Forward plain = [=](const Tensors& in) { return parts.whole()({in[0].sin()}); };
  const CheckpointOptions options;
  expect_same_bits(run(plain, {input()}, parts.parameters, nullptr),
                   run(inner, {input()}, parts.parameters, &options));
}

TEST(Parts, ChangesAndMismatchesAreErrors) {
  const auto parts = mlp_parts();
  const auto y = checkpoint_parts(parts.first, parts.rest, {input()})[0];
  {
    const at::NoGradGuard no_grad;
    parts.parameters[2].add_(1);  // fc2's weight, which the rest saves
  }
  EXPECT_NE(error_of([&] { y.sum().backward(); }).find("modified by an in-place operation"),
            std::string::npos);
  int calls = 0;
  CheckpointOptions options;
  options.name = "layer 1 mlp";
  const Forward changing = [&](const Tensors& in) -> Tensors {
    return {(++calls == 1 ? in[0] : in[0].narrow(0, 0, 2)).exp() * 1};
  };
  const auto error = error_of([&] {
    checkpoint_parts(changing, parts.rest, {input({4, 8}).matmul(at::ones({8, 32}))}, options)[0]
        .sum()
        .backward();
  });
  EXPECT_NE(error.find("recoup: layer 1 mlp: saved tensor 0: the forward saved"), std::string::npos)
      << error;
}

TEST(Parts, ARecomputeIsTold) {
  std::vector<bool> told;
  const auto x = input();
  checkpoint(
      [&](const at::Tensor& t) {
        told.push_back(recomputing());
        return t.exp().sin();
      },
      x)
      .sum()
      .backward();
  EXPECT_EQ(told, (std::vector<bool>{false, true}));
  EXPECT_FALSE(recomputing());
}

}  // namespace
}  // namespace recoup
