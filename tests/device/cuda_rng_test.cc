// The generator's part under CUDA-graph capture (hooks/checkpoint/cuda_rng.cc), compiled against
// the few calls of fake_cuda/ in both shapes that LibTorch's generator has had. A draw here reads
// the cells at once: the run of the test is the graph's replay.
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <gtest/gtest.h>

#include <utility>

#include "rng.h"

namespace recoup {
namespace {

using Numbers = std::pair<std::int64_t, std::int64_t>;  // what a kernel's numbers depend on

class CudaRng : public testing::Test {
 protected:
  CudaRng() {
    at::fake::capture = 1;
    generator_ = at::make_generator<at::CUDAGeneratorImpl>(
        c10::DeviceIndex{0}, c10::make_intrusive<at::CUDAGeneratorState>());
    set_state(1);
    fill(11, 100);
  }
  ~CudaRng() override { at::fake::capture.reset(); }

  // What LibTorch does with the generator's state when a capture begins.
  void set_state(std::uint64_t capture) {
    at::fake::capture = capture;
    auto state = c10::make_intrusive<at::CUDAGeneratorState>();
#if RECOUP_TORCH_CAPTURE_STATES
    auto of_capture = c10::make_intrusive<at::CUDAGeneratorCaptureState>();
    of_capture->rng_state_seed_extragraph_ = seed_;
    of_capture->rng_state_offset_extragraph_ = offset_;
    state->capture_states_[capture] = std::move(of_capture);
#else
    state->capturing_ = true;
    state->seed_extragraph_ = seed_;
    state->offset_extragraph_ = offset_;
#endif
    generator_.graphsafe_set_state(
        at::make_generator<at::CUDAGeneratorImpl>(c10::DeviceIndex{0}, state));
  }

  // What a replay does before it starts: the generator's cells say where it begins.
  void fill(std::int64_t seed, std::int64_t offset) {
    seed_.fill_(seed);
    offset_.fill_(offset);
  }

  Numbers draw() {
    const auto state = static_cast<at::CUDAGeneratorImpl*>(generator_.unsafeGetGeneratorImpl())
                           ->philox_cuda_state(4);
    return {*state.seed_.ptr,
            *state.offset_.ptr + static_cast<std::int64_t>(state.offset_intragraph_)};
  }

  at::Tensor seed_ = at::fake::new_cell(0), offset_ = at::fake::new_cell(0);
  at::Generator generator_;
};

TEST_F(CudaRng, ARecomputeDrawsAgainAndLeavesTheGeneratorWhereItWas) {
  draw();
  const RngState before(generator_);
  EXPECT_FALSE(before.drawn_since());
  const auto first = draw(), second = draw();
  EXPECT_EQ(first, Numbers(11, 104));
  EXPECT_TRUE(before.drawn_since());
  for (int recompute = 0; recompute < 2; ++recompute) {  // the second of a retained graph
    const ScopedRng scope(before);
    EXPECT_EQ(draw(), first);
    EXPECT_EQ(draw(), second);
  }
  EXPECT_EQ(draw(), Numbers(11, 112));
}

TEST_F(CudaRng, ForwardAndBackwardInGraphsOfTheirOwn) {
  draw();
  const RngState before(generator_);
  const auto forward = draw();
  set_state(2);
  fill(11, 300);  // the backward's graph starts with what comes after the forward
  draw();
  {
    const ScopedRng scope(before);
    EXPECT_EQ(draw(), forward);
  }
  EXPECT_EQ(draw(), Numbers(11, 304));
}

TEST_F(CudaRng, NestedRecomputes) {
  const RngState outer(generator_);
  const auto first = draw();
  const RngState inner(generator_);
  const auto second = draw();
  const ScopedRng scope(outer);
  EXPECT_EQ(draw(), first);
  {
    const ScopedRng nested(inner);
    EXPECT_EQ(draw(), second);
  }
  EXPECT_EQ(draw(), second);
}

}  // namespace
}  // namespace recoup
