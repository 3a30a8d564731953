// In place of LibTorch's header: see CUDAGeneratorImpl.h beside it.
#pragma once

#include <ATen/cuda/CUDAGeneratorImpl.h>

namespace at::cuda {

enum class CaptureStatus { None, Active };

inline CaptureStatus currentStreamCaptureStatus() {
  return fake::capture ? CaptureStatus::Active : CaptureStatus::None;
}

inline std::optional<std::uint64_t> currentStreamCaptureId() { return fake::capture; }

}  // namespace at::cuda
