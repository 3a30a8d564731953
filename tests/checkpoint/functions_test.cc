// Operations that save buffers and results, and custom functions.
#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

// pytorch issue 193671: rrelu_with_noise saves its noise before the kernel has drawn it.
TEST(Functions, ABufferSavedBeforeItIsFilled) {
  const auto rrelu = [](const Tensors& in) -> Tensors {
    return {at::rrelu(in[0], 0.1, 0.9, /*training=*/true)};
  };
  expect_transparent(rrelu, {input({64, 64})});
  const auto mlp = seeded_mlp();
  expect_transparent(
      [=](const Tensors& in) -> Tensors {
        return {at::rrelu(mlp->forward(in[0]), 0.1, 0.9, true) + 1};
      },
      {input({16, 8})}, mlp->parameters());
}

TEST(Functions, MasksOfDropoutAreComplete) {
  expect_transparent(
      [](const Tensors& in) -> Tensors { return {at::dropout(in[0] * 2, 0.5, true)}; }, {input()});
  expect_transparent(
      [](const Tensors& in) -> Tensors {
        return {std::get<0>(at::native_dropout(in[0] * 2, 0.5, true))};
      },
      {input()});
}

// A quantizer's amax, a workspace: the recompute's own write is no change from outside.
TEST(Functions, ABufferThatTheForwardRefills) {
  const auto buffer = torch::zeros({3, 5, 8});
  const auto refilling = [buffer](const Tensors& in) -> Tensors {
    const auto h = in[0] * 2;
    {
      const at::NoGradGuard no_grad;
      buffer.copy_(h * 2);
    }
    return {(h * buffer).exp()};
  };
  expect_transparent(refilling, {input()});
  // Twice through a retained graph, and a change from outside is still seen.
  const auto x = input();
  const auto y = checkpoint(refilling, {x})[0].sum();
  const auto first = torch::autograd::grad({y}, {x}, {}, true)[0];
  const auto second = torch::autograd::grad({y}, {x}, {}, true)[0];
  EXPECT_TRUE(same_bits(first, second));
  buffer.add_(1);
  EXPECT_NE(error_of([&] { y.backward(); }).find("modified by an in-place operation"),
            std::string::npos);
}

TEST(Functions, ABufferRefilledAfterItWasSavedIsAnError) {
  const auto buffer = torch::zeros({3, 5, 8});
  const auto late = [buffer](const Tensors& in) -> Tensors {
    const auto y = (in[0] * buffer).exp();
    const at::NoGradGuard no_grad;
    buffer.add_(1);
    return {y};
  };
  EXPECT_NE(error_of([&] { late({input()})[0].sum().backward(); }), "");  // as stock autograd
  EXPECT_NE(error_of([&] { checkpoint(late, {input()})[0].sum().backward(); }), "");
}

TEST(Functions, NestedTensorsOfUnequalSizes) {
  const auto a = torch::randn({3, 8}, torch::requires_grad());
  const auto b = torch::randn({5, 8}, torch::requires_grad());
  const auto w = torch::randn({8, 8}, torch::requires_grad());
  const auto gradients = [&](bool checkpointed) {
    const auto nested = at::_nested_tensor_from_tensor_list({a, b});
    const auto forward = [w](const at::Tensor& t) { return at::gelu(at::linear(t, w)); };
    const auto y = checkpointed ? checkpoint(forward, nested) : forward(nested);
    return torch::autograd::grad({at::nested_to_padded_tensor(y, 0.0).sum()}, {a, b, w});
  };
  expect_same_bits(gradients(false), gradients(true));
}

// Reads its saved tensors one at a time, and saves its own result.
struct Twice : torch::autograd::Function<Twice> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x) {
    const auto y = x.exp();
    ctx->save_for_backward({x, y});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list g) {
    return {g[0] * ctx->get_saved_variables()[1] * (ctx->get_saved_variables()[0] + 1)};
  }
};

TEST(Functions, CustomFunctionsMayReadTheirTensorsTwice) {
  int calls = 0;
  const auto forward = [&](const Tensors& in) -> Tensors {
    ++calls;
    return {Twice::apply(in[0] * 2)};
  };
  expect_transparent(forward, {input()});
  calls = 0;
  checkpoint(forward, {input()})[0].sum().backward();
  EXPECT_EQ(calls, 2);
}

// A custom function's context keeps what it is about to save; leaving it in the middle would leak.
TEST(Functions, CustomFunctionsDoNotLeak) {
  const auto x = input();
  int calls = 0;
  ActivationMeter meter(at::kCPU);
  checkpoint([](const Tensors& in) -> Tensors { return {Twice::apply(in[0] * 2) + 1}; }, {x})[0]
      .sum()
      .backward();
  x.mutable_grad().reset();
  EXPECT_EQ(meter.bytes(), 0);
  EXPECT_NE(error_of([&] {
              checkpoint(
                  [&](const Tensors& in) -> Tensors {
                    return {Twice::apply(in[0].to(++calls == 1 ? at::kFloat : at::kDouble))};
                  },
                  {x})[0]
                  .sum()
                  .backward();
            }).find("the recompute Double"),
            std::string::npos);
  EXPECT_EQ(meter.bytes(), 0);
}

}  // namespace
}  // namespace recoup
