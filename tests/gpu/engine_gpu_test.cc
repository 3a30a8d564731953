// The engine on the device that tests/gpu.sh names in RECOUP_TEST_DEVICE (cpu, cuda): results,
// gradients and random numbers bit-equal to a run without a checkpoint, bytes kept, other streams.
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>
#include <thread>

#include "../../examples/activation_meter.h"
#include "../checkpoint/fixtures.h"

namespace recoup::testing {
namespace {

constexpr std::int64_t kRows = 1024, kHidden = 256, kFfn = 1024;

at::Device device() {
  const char* name = std::getenv("RECOUP_TEST_DEVICE");
  return at::Device(name != nullptr ? name : "cpu");
}

struct Case {
  explicit Case(double dropout, at::ScalarType type = at::kFloat) {
    torch::manual_seed(2);
    mlp = std::make_shared<MlpImpl>(kHidden, kFfn, dropout);
    mlp->to(device(), type);
    x = at::randn({kRows, kHidden}, at::TensorOptions(device()).dtype(type)).requires_grad_(true);
  }
  Results run(const CheckpointOptions* options) {
    return testing::run(of(mlp), {x}, mlp->parameters(), options);
  }
  Mlp mlp;
  at::Tensor x;
};

// Bytes on the device between forward and backward.
std::int64_t kept(Case& c, bool checkpointed) {
  const ActivationMeter meter(device().type());
  const auto y = checkpointed ? checkpoint(of(c.mlp), {c.x})[0] : c.mlp->forward(c.x);
  return meter.bytes();
}

TEST(EngineOnGpu, SameBits) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    Case c(0.0, type);
    const CheckpointOptions options;
    expect_same_bits(c.run(&options), c.run(nullptr));
  }
}

TEST(EngineOnGpu, DropoutDrawsTheSameNumbersAgain) {
  Case c(0.5);
  const CheckpointOptions options;
  expect_same_bits(c.run(&options), c.run(nullptr));
}

TEST(EngineOnGpu, KeepsTheInputAndTheOutputOnly) {
  Case c(0.0);
  kept(c, false);                                 // libraries take their workspaces
  EXPECT_EQ(kept(c, true), kRows * kHidden * 4);  // the output; the input is the caller's
  // fc1's output and the activation's beside it.
  EXPECT_EQ(kept(c, false), kRows * (kHidden + 2 * kFfn) * 4);
}

TEST(EngineOnGpu, ManyTimesKeepsNothing) {
  Case c(0.5);
  const CheckpointOptions options;
  c.run(&options);
  const ActivationMeter meter(device().type());
  for (int step = 0; step < 20; ++step) {
    c.run(&options);
    for (auto& p : c.mlp->parameters()) p.mutable_grad() = at::Tensor();
    c.x.mutable_grad() = at::Tensor();
  }
  EXPECT_LE(meter.bytes(), 0);
}

TEST(EngineOnGpu, OnAnotherStream) {
  if (device().is_cpu()) GTEST_SKIP() << "the CPU has no streams";
  Case c(0.5);
  const CheckpointOptions options;
  const auto want = c.run(nullptr);
  const c10::impl::VirtualGuardImpl guard(device().type());
  {
    const c10::StreamGuard on(guard.getStreamFromGlobalPool(device()));
    expect_same_bits(c.run(&options), want);
  }
}

TEST(EngineOnGpu, BackwardInAnotherThread) {
  Case c(0.0);
  const auto want = c.run(nullptr);
  c.x.mutable_grad() = at::Tensor();
  const auto y = checkpoint(of(c.mlp), {c.x})[0];
  const auto weights = at::arange(1, y.numel() + 1, y.options()).view_as(y);
  std::thread([&] { (y * weights).sum().to(at::kDouble).backward(); }).join();
  EXPECT_TRUE(same_bits(c.x.grad(), want[1]));
}

}  // namespace
}  // namespace recoup::testing
