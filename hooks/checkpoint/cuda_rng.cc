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

// A generator that draws into the graph under capture from `from` on. Always a new one, so that
// drawing does not move `from`: a retained graph is recomputed again.
at::Generator generator_at(c10::DeviceIndex device, const Captured& from) {
#if RECOUP_TORCH_CAPTURE_STATES
  auto capture = c10::make_intrusive<at::CUDAGeneratorCaptureState>();
  capture->offset_intragraph_ = from.offset_intragraph;
  capture->rng_state_seed_extragraph_ = from.seed;
  capture->rng_state_offset_extragraph_ = from.offset;
  auto state = c10::make_intrusive<at::CUDAGeneratorState>();
  state->capture_states_.emplace(at::cuda::currentStreamCaptureId().value(), std::move(capture));
#else
  auto state = c10::make_intrusive<at::CUDAGeneratorState>(0, 0, from.offset_intragraph);
  state->capturing_ = true;
  state->seed_extragraph_ = from.seed;
  state->offset_extragraph_ = from.offset;
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

Captured save(const at::Generator& generator) {
  const auto now = peek(generator);
  const auto device = generator.device().index();
  // Clones, by kernels within the graph: before each replay the generator's own cells are filled
  // anew, and where the backward is a graph of its own they then hold what comes after the forward.
  return {cell(device, now.seed_.ptr).clone(), cell(device, now.offset_.ptr).clone(),
          now.offset_intragraph_};
}

bool drawn_since(const at::Generator& generator, const Captured& saved) {
  return peek(generator).offset_intragraph_ != saved.offset_intragraph;
}

void restore(const at::Generator& generator, const Captured& saved) {
  const auto at_saved = generator_at(generator.device().index(), saved);
  impl(generator)->graphsafe_set_state(at_saved.getIntrusivePtr());
}

}  // namespace recoup::cuda_rng

#else

namespace recoup::cuda_rng {
bool capturing(const at::Generator&) { return false; }
Captured save(const at::Generator&) { return {}; }
bool drawn_since(const at::Generator&, const Captured&) { return false; }
void restore(const at::Generator&, const Captured&) {}
}  // namespace recoup::cuda_rng

#endif
