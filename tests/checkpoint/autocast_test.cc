// Checkpoints under autocast.
#include <ATen/autocast_mode.h>

#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

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

TEST(AutocastTest, AutocastIsRestored) {
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

// A plain run casts a weight once and sums its gradients in the low precision.
TEST(AutocastTest, AWeightUsedTwiceGetsTheSameGradient) {
  torch::manual_seed(2);
  const auto w = torch::randn({8, 8}, torch::requires_grad());
  const auto once = [w](const Tensors& in) -> Tensors { return {at::gelu(at::linear(in[0], w))}; };
  const auto twice = [once](const Tensors& in) -> Tensors { return once(once(in)); };
  const auto gradients = [&](bool checkpointed, bool backward_within, bool two_regions) {
    const auto x = input({64, 8});
    std::optional<Autocast> autocast(std::in_place);
    at::Tensor y;
    if (two_regions) {
      const auto a = checkpointed ? checkpoint(once, {x})[0] : once({x})[0];
      y = checkpointed ? checkpoint(once, {a})[0] : once({a})[0];
    } else {
      y = checkpointed ? checkpoint(twice, {x})[0] : twice({x})[0];
    }
    if (!backward_within) autocast.reset();
    return torch::autograd::grad({y.to(at::kFloat).pow(2).sum()}, {x, w});
  };
  for (const bool within : {false, true}) {
    for (const bool two : {false, true}) {
      expect_same_bits(gradients(false, within, two), gradients(true, within, two));
    }
  }
  // Nothing of the recompute stays in the cache, which nobody would empty.
  gradients(true, false, false);
  EXPECT_EQ(w.use_count(), 3);  // here and in the two forwards
}

// pytorch issue 141896: the cache of casted weights makes what is saved depend on what ran before.
TEST(AutocastTest, AutocastsWeightCacheDoesNotMatter) {
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

}  // namespace
}  // namespace recoup
