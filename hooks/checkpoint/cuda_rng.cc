#include "cuda_rng.h"

#ifdef RECOUP_CUDA

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGuard.h>

#include <ATen/cuda/CUDAGraphsUtils.cuh>

#include "torch_private.h"

namespace recoup::cuda_rng {
namespace {

at::CUDAGeneratorImpl* impl(const at::Generator& g) {
  return static_cast<at::CUDAGeneratorImpl*>(g.unsafeGetGeneratorImpl());
}

// A seed or an offset as captured kernels find it: in device memory.
at::Tensor cell(c10::DeviceIndex device, std::int64_t* p) {
  return at::from_blob(p, {1}, at::TensorOptions().dtype(at::kLong).device(at::kCUDA, device));
}

// A state that draws into the graph under capture from `offset` on.
at::Generator state_at(c10::DeviceIndex device, at::Tensor seed, at::Tensor offset_cell,
                       std::uint64_t offset) {
#if RECOUP_TORCH_CAPTURE_STATES
  auto capture = c10::make_intrusive<at::CUDAGeneratorCaptureState>();
  capture->offset_intragraph_ = offset;
  capture->rng_state_seed_extragraph_ = std::move(seed);
  capture->rng_state_offset_extragraph_ = std::move(offset_cell);
  auto state = c10::make_intrusive<at::CUDAGeneratorState>();
  state->capture_states_.emplace(at::cuda::currentStreamCaptureId().value(), std::move(capture));
#else
  auto state = c10::make_intrusive<at::CUDAGeneratorState>(0, 0, offset);
  state->capturing_ = true;
  state->seed_extragraph_ = std::move(seed);
  state->offset_extragraph_ = std::move(offset_cell);
#endif
  return at::make_generator<at::CUDAGeneratorImpl>(device, std::move(state));
}

at::PhiloxCudaState peek(const at::Generator& g) { return impl(g)->philox_cuda_state(0); }

}  // namespace

bool capturing(const at::Generator& generator) {
  if (!generator.device().is_cuda()) return false;
  const c10::cuda::CUDAGuard guard(generator.device());
  return at::cuda::currentStreamCaptureStatus() != at::cuda::CaptureStatus::None;
}

at::Generator save(const at::Generator& generator) {
  const auto now = peek(generator);
  const auto device = generator.device().index();
  // Clones, by kernels within the graph: before each replay the generator's own cells are filled
  // anew, and where the backward is a graph of its own they then hold what comes after the forward.
  return state_at(device, cell(device, now.seed_.ptr).clone(),
                  cell(device, now.offset_.ptr).clone(), now.offset_intragraph_);
}

bool drawn_since(const at::Generator& generator, const at::Generator& saved) {
  return peek(generator).offset_intragraph_ != peek(saved).offset_intragraph_;
}

void restore(const at::Generator& generator, const at::Generator& saved) {
  // A copy, so that drawing does not move `saved`: a retained graph is recomputed again.
  const auto then = peek(saved);
  const auto device = generator.device().index();
  const auto copy = state_at(device, cell(device, then.seed_.ptr), cell(device, then.offset_.ptr),
                             then.offset_intragraph_);
  impl(generator)->graphsafe_set_state(copy.getIntrusivePtr());
}

}  // namespace recoup::cuda_rng

#else

namespace recoup::cuda_rng {
bool capturing(const at::Generator&) { return false; }
at::Generator save(const at::Generator& generator) { return generator; }
bool drawn_since(const at::Generator&, const at::Generator&) { return false; }
void restore(const at::Generator&, const at::Generator&) {}
}  // namespace recoup::cuda_rng

#endif
