// In place of LibTorch's header: what hooks/checkpoint/cuda_rng.cc calls of a CUDA generator, with
// its seed and offset cells in host memory, in the shape of LibTorch up to 2.11 or, with
// RECOUP_TORCH_CAPTURE_STATES, since 2.12. A capture is a number; a kernel is who reads the cells.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GeneratorImpl.h>

#include <map>
#include <optional>

namespace at {

namespace fake {
inline std::optional<std::uint64_t> capture;  // the capture under way
inline Tensor new_cell(std::int64_t value) { return full({1}, value, kLong); }
}  // namespace fake

struct PhiloxCudaState {
  struct {
    std::int64_t* ptr;
  } seed_, offset_;
  std::uint64_t offset_intragraph_;
};

#if RECOUP_TORCH_CAPTURE_STATES

struct CUDAGeneratorCaptureState : c10::intrusive_ptr_target {
  std::uint64_t offset_intragraph_ = 0;
  Tensor rng_state_seed_extragraph_, rng_state_offset_extragraph_;
};

struct CUDAGeneratorState : c10::intrusive_ptr_target {
  std::map<std::uint64_t, c10::intrusive_ptr<CUDAGeneratorCaptureState>> capture_states_;

  PhiloxCudaState draw(std::uint64_t increment) {
    auto& state = capture_states_[fake::capture.value()];
    if (!state) {  // a generator that a capture has not met yet begins there
      state = c10::make_intrusive<CUDAGeneratorCaptureState>();
      state->rng_state_seed_extragraph_ = fake::new_cell(0);
      state->rng_state_offset_extragraph_ = fake::new_cell(0);
    }
    const auto now = state->offset_intragraph_;
    state->offset_intragraph_ += increment;
    return {{state->rng_state_seed_extragraph_.data_ptr<std::int64_t>()},
            {state->rng_state_offset_extragraph_.data_ptr<std::int64_t>()},
            now};
  }
};

#else

struct CUDAGeneratorState : c10::intrusive_ptr_target {
  CUDAGeneratorState(std::uint64_t = 0, std::uint64_t = 0, std::uint64_t offset = 0)
      : offset_intragraph_(offset) {}
  bool capturing_ = false;
  std::uint64_t offset_intragraph_;
  Tensor seed_extragraph_, offset_extragraph_;

  PhiloxCudaState draw(std::uint64_t increment) {
    TORCH_CHECK(capturing_, "not in capture mode");
    const auto now = offset_intragraph_;
    offset_intragraph_ += increment;
    return {{seed_extragraph_.data_ptr<std::int64_t>()},
            {offset_extragraph_.data_ptr<std::int64_t>()},
            now};
  }
};

#endif

class CUDAGeneratorImpl : public c10::GeneratorImpl {
 public:
  CUDAGeneratorImpl(DeviceIndex device, c10::intrusive_ptr<CUDAGeneratorState> state)
      : GeneratorImpl(Device(kCUDA, device), DispatchKeySet(DispatchKey::CUDA)),
        state_(std::move(state)) {}

  PhiloxCudaState philox_cuda_state(std::uint64_t increment) { return state_->draw(increment); }
  void graphsafe_set_state(const c10::intrusive_ptr<GeneratorImpl>& other) override {
    state_ = static_cast<CUDAGeneratorImpl&>(*other).state_;
  }
  c10::intrusive_ptr<GeneratorImpl> graphsafe_get_state() const override {
    return c10::make_intrusive<CUDAGeneratorImpl>(device().index(), state_);
  }

  // What a generator refuses under capture.
  void set_current_seed(std::uint64_t) override { refuse(); }
  void set_offset(std::uint64_t) override { refuse(); }
  std::uint64_t get_offset() const override { return refuse(); }
  std::uint64_t current_seed() const override { return refuse(); }
  std::uint64_t seed() override { return refuse(); }
  void set_state(const c10::TensorImpl&) override { refuse(); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    refuse();
    return {};
  }

 private:
  static std::uint64_t refuse() { TORCH_CHECK(false, "refused during CUDA graph capture"); }
  CUDAGeneratorImpl* clone_impl() const override {
    return new CUDAGeneratorImpl(device().index(), state_);
  }

  c10::intrusive_ptr<CUDAGeneratorState> state_;
};

}  // namespace at
