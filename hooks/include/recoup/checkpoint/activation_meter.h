// Counts the bytes that a piece of code allocates and keeps, to the byte and by device, from
// LibTorch's own allocator reports (what its profiler reads): what a forward saves for backward, in
// anybody's trainer.
//
//   const recoup::ActivationMeter meter(device.type());
//   const auto loss = model->forward(batch);
//   std::printf("%lld bytes\n", static_cast<long long>(meter.bytes()));
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace recoup {

// Counts while it lives, in this thread and in the autograd threads that work for it. A report is
// of what was asked for on the CPU, and on CUDA of the block handed out (a multiple of 512 bytes).
// Meters nest; the innermost counts.
class ActivationMeter {
 public:
  explicit ActivationMeter(c10::DeviceType device)
      : reporter_(std::make_shared<Reporter>(device)),
        guard_(c10::DebugInfoKind::PROFILER_STATE, reporter_) {}

  // Bytes allocated minus bytes freed since construction.
  std::int64_t bytes() const { return reporter_->bytes; }
  // The largest that bytes() has been.
  std::int64_t peak_bytes() const { return reporter_->peak; }

 private:
  struct Reporter final : c10::MemoryReportingInfoBase {
    explicit Reporter(c10::DeviceType device) : device(device) {}
    void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device where) override {
      if (where.type() != device) return;
      const std::int64_t now = bytes += size;
      std::int64_t before = peak;
      while (now > before && !peak.compare_exchange_weak(before, now)) {
      }
    }
    bool memoryProfilingEnabled() const override { return true; }
    const c10::DeviceType device;
    std::atomic<std::int64_t> bytes{0}, peak{0};
  };
  std::shared_ptr<Reporter> reporter_;
  c10::DebugInfoGuard guard_;
};

}  // namespace recoup
