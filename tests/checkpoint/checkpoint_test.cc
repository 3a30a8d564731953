#include "recoup/checkpoint/checkpoint.h"

#include <ATen/autocast_mode.h>

#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/replay.h"

namespace recoup {
namespace {

using namespace testing;

Forward of(const Mlp& mlp) {
  return [mlp](const Tensors& in) -> Tensors { return {mlp->forward(in[0])}; };
}
at::Tensor input(c10::IntArrayRef sizes = {3, 5, 8}) {
  torch::manual_seed(1);
  return torch::randn(sizes, torch::requires_grad());
}
Mlp seeded_mlp(double dropout = 0.0) {
  torch::manual_seed(2);
  return std::make_shared<MlpImpl>(8, 32, dropout);
}

TEST(Checkpoint, GradientsAreBitEqual) {
  const auto mlp = seeded_mlp();
  expect_transparent(of(mlp), {input()}, mlp->parameters());
  expect_transparent(of(mlp), {input({5, 8})}, mlp->parameters());
}

TEST(Checkpoint, DropoutDrawsTheSameNumbers) {
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

TEST(Checkpoint, NormalSamplesKeptInTheGeneratorAreRestored) {
  const auto noisy = [](const Tensors& in) -> Tensors {
    return {in[0] * at::randn({1}) * at::randn({3, 5, 8})};
  };
  torch::manual_seed(5);
  at::randn({1});
  expect_transparent(noisy, {input()});
}

TEST(Checkpoint, SavedBytesAreTheInputsOnly) {
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

TEST(Checkpoint, RngStateIsNoTensorMemory) {
  const auto mlp = seeded_mlp(0.5);
  const auto x = input({16, 8});
  ActivationMeter meter(at::kCPU);
  const auto y = checkpoint(of(mlp), {x})[0];
  EXPECT_EQ(meter.bytes(), y.numel() * 4);
}

TEST(Checkpoint, NeverRepeatsTheLastGemm) {
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

TEST(Checkpoint, StopsBeforeTheLastGemmOfAFrozenWeightToo) {
  const auto mlp = seeded_mlp();
  mlp->fc2->weight.set_requires_grad(false);
  const auto x = input({16, 8});
  const auto y = checkpoint(of(mlp), {x})[0];
  const KernelCounts counts;
  y.sum().backward();
  EXPECT_EQ(counts.addmm, 1);
}

TEST(Checkpoint, RecomputesOnceABackward) {
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

TEST(Checkpoint, NoGradModeIsAPlainCall) {
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

TEST(Checkpoint, NothingToDifferentiateKeepsNothing) {
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

TEST(Checkpoint, SeveralInputsAndOutputs) {
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
TEST(Checkpoint, AnOutputMayBeAParameter) {
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

TEST(Checkpoint, AnInputModifiedAfterForwardIsAnError) {
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

TEST(Checkpoint, AnInputThatNoOperationSavedIsCheckedToo) {
  auto x = input() * 1;
  const auto y =
      checkpoint([](const Tensors& in) -> Tensors { return {(in[0] + 1).exp()}; }, {x})[0];
  x.detach().add_(1);
  const auto error = error_of([&] { y.sum().backward(); });
  EXPECT_NE(error.find("input 0 (Float[3, 5, 8] on cpu) was modified by an in-place operation"),
            std::string::npos)
      << error;
}

TEST(Checkpoint, AParameterModifiedAfterForwardIsAnError) {
  const auto mlp = seeded_mlp();
  const auto y = checkpoint(of(mlp), {input()})[0];
  {
    const at::NoGradGuard no_grad;
    mlp->fc1->weight.add_(1);
  }
  const auto error = error_of([&] { y.sum().backward(); });
  EXPECT_NE(error.find("modified by an in-place operation"), std::string::npos) << error;
}

TEST(Checkpoint, ARegionThatOverwritesWhatItSavedIsAnError) {
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

TEST(Checkpoint, InPlaceOperationsWithinTheRegionWork) {
  expect_transparent(
      [](const Tensors& in) -> Tensors {
        auto h = in[0] * 2;
        h.add_(1).relu_();
        auto g = h * in[0];
        return {g.mul_(2).sigmoid_()};
      },
      {input()});
}

TEST(Checkpoint, AnInputReturnedModifiedInPlaceIsNoCycle) {
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

TEST(Checkpoint, RetainGraphAndASecondBackward) {
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

TEST(Checkpoint, PartialBackwardsRecomputeWhatTheyNeed) {
  const auto mlp = seeded_mlp();
  const auto x = input();
  const auto y = checkpoint(of(mlp), {x})[0];
  const auto parts = torch::autograd::grad({y.sum()}, {mlp->fc2->weight}, {}, true);
  const auto plain = torch::autograd::grad({mlp->forward(x).sum()}, {mlp->fc2->weight});
  EXPECT_TRUE(same_bits(parts[0], plain[0]));
  EXPECT_TRUE(same_bits(torch::autograd::grad({y.sum()}, {x})[0],
                        torch::autograd::grad({mlp->forward(x).sum()}, {x})[0]));
}

TEST(Checkpoint, DoubleBackward) {
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

TEST(Checkpoint, DoubleBackwardThroughTheMlp) {
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

TEST(Checkpoint, Nested) {
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

TEST(Checkpoint, NestedThreeDeepWithTheInnerLast) {
  const auto mlp = seeded_mlp(0.5);
  const auto inner = [=](const Tensors& in) { return checkpoint(of(mlp), in); };
  const auto middle = [=](const Tensors& in) { return checkpoint(inner, {in[0] * 2}); };
  const auto plain = [=](const Tensors& in) -> Tensors { return {mlp->forward(in[0] * 2)}; };
  const CheckpointOptions options;
  expect_same_bits(run(plain, {input()}, mlp->parameters(), nullptr),
                   run(middle, {input()}, mlp->parameters(), &options));
}

TEST(Checkpoint, ABackwardWithinTheRegion) {
  expect_transparent(
      [](const Tensors& in) -> Tensors {
        const auto x = in[0].detach().set_requires_grad(true);
        const auto g = torch::autograd::grad({x.exp().sin().sum()}, {x})[0];
        return {in[0].tanh() * g};
      },
      {input()});
}

TEST(Checkpoint, AnExceptionInTheRecomputePropagatesAndLeavesNothing) {
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

TEST(Checkpoint, AnExceptionInTheForwardLeavesNothing) {
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

TEST(Checkpoint, AForwardThatCatchesEverythingStillEnds) {
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

TEST(Checkpoint, NonDeterminismNamesTheTensor) {
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

// pytorch issue 193671: rrelu_with_noise saves its noise before the kernel has drawn it.
TEST(Checkpoint, ABufferSavedBeforeItIsFilled) {
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

TEST(Checkpoint, MasksOfDropoutAreComplete) {
  expect_transparent(
      [](const Tensors& in) -> Tensors { return {at::dropout(in[0] * 2, 0.5, true)}; }, {input()});
  expect_transparent(
      [](const Tensors& in) -> Tensors {
        return {std::get<0>(at::native_dropout(in[0] * 2, 0.5, true))};
      },
      {input()});
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

TEST(Checkpoint, CustomFunctionsMayReadTheirTensorsTwice) {
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
TEST(Checkpoint, CustomFunctionsDoNotLeak) {
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

class Autocast {
 public:
  explicit Autocast(at::ScalarType dtype = at::kBFloat16) {
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
  }
  ~Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  }
};

TEST(Checkpoint, AutocastIsRestored) {
  const auto mlp = seeded_mlp(0.5);
  const auto step = [&](bool checkpointed) {
    mlp->zero_grad();
    torch::manual_seed(3);
    const auto x = input();
    at::Tensor y;
    {
      const Autocast autocast;
      y = checkpointed ? checkpoint(of(mlp), {x})[0] : mlp->forward(x);
    }
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    y.sum().backward();  // outside autocast
    EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    Results results{y.detach(), x.grad()};
    for (const auto& p : mlp->parameters()) results.push_back(p.grad().clone());
    return results;
  };
  expect_same_bits(step(false), step(true));
}

// pytorch issue 141896: the cache of casted weights makes what is saved depend on what ran before.
TEST(Checkpoint, AutocastsWeightCacheDoesNotMatter) {
  const auto mlp = seeded_mlp();
  const auto step = [&](bool checkpointed) {
    mlp->zero_grad();
    const auto x = input(), x2 = input();
    const Autocast autocast;
    {
      const at::NoGradGuard no_grad;  // fills the cache with casts that need no grad
      mlp->forward(x);
    }
    const auto forward = [&](const at::Tensor& in) {
      return checkpointed ? checkpoint(of(mlp), {in})[0] : mlp->forward(in);
    };
    const auto y = forward(x);
    y.sum().backward();  // within autocast, the cache now warm
    forward(x2).sum().backward();
    EXPECT_EQ(at::autocast::is_autocast_cache_enabled(), checkpointed);
    Results results{y.detach(), x.grad(), x2.grad()};
    for (const auto& p : mlp->parameters()) results.push_back(p.grad().clone());
    return results;
  };
  const auto checkpointed = step(true);
  // Without a checkpoint the cached casts without grad would cut the weights off; compare with a
  // plain run that has no cache.
  at::autocast::set_autocast_cache_enabled(false);
  const auto plain = step(false);
  at::autocast::set_autocast_cache_enabled(true);
  expect_same_bits(plain, checkpointed);
}

TEST(Checkpoint, DisabledHooksAreAClearError) {
  at::SavedTensorDefaultHooks::disable("because of a test");
  const auto error = error_of([&] { checkpoint(of(seeded_mlp()), {input()}); });
  at::SavedTensorDefaultHooks::enable();
  EXPECT_NE(error.find("saved tensor hooks are disabled: because of a test"), std::string::npos);
}

TEST(Checkpoint, ManyStepsTrainAsWithout) {
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
