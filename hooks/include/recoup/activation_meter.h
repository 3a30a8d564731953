// Counts the bytes that a piece of code allocates and keeps, to the byte and by device, from
// LibTorch's own allocator reports (what its profiler reads). For tests, tables and planning.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <cstdint>
#include <memory>

namespace recoup {

// Counts while it lives, in this thread and in the autograd threads that work for it. One device
// type at a time; a report is of what was asked for, before an allocator rounds it up on the CPU,
// and of the block handed out on CUDA (a multiple of 512 bytes). Meters nest; the innermost counts.
class ActivationMeter {
 public:
  explicit ActivationMeter(c10::DeviceType device);

  // Bytes allocated minus bytes freed since construction.
  std::int64_t bytes() const;
  // The largest that bytes() has been since construction or the last reset_peak().
  std::int64_t peak_bytes() const;
  void reset_peak();

 private:
  class Reporter;
  std::shared_ptr<Reporter> reporter_;
  c10::DebugInfoGuard guard_;
};

}  // namespace recoup
