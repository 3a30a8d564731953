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
// Meters nest, and each counts.
class ActivationMeter {
 public:
  explicit ActivationMeter(c10::DeviceType device)
      : reporter_(std::make_shared<Reporter>(device)),
        guard_(c10::DebugInfoKind::PROFILER_STATE, reporter_) {}

  // Bytes allocated minus bytes freed since construction.
  std::int64_t bytes() const { return reporter_->bytes; }
  // The largest that bytes() has been, since construction or the last restart_peak().
  std::int64_t peak_bytes() const { return reporter_->peak; }
  void restart_peak() { reporter_->peak = reporter_->bytes.load(); }

 private:
  struct Reporter final : c10::MemoryReportingInfoBase {
    explicit Reporter(c10::DeviceType device)
        : device(device),
          around(c10::ThreadLocalDebugInfo::current()),
          outer(static_cast<c10::MemoryReportingInfoBase*>(
              c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE))) {}
    void reportMemoryUsage(void* p, int64_t size, size_t allocated, size_t reserved,
                           c10::Device where) override {
      // There is one place for a reporter: whoever had it goes on hearing.
      if (outer != nullptr && outer->memoryProfilingEnabled()) {
        outer->reportMemoryUsage(p, size, allocated, reserved, where);
      }
      if (where.type() != device) return;
      const std::int64_t now = bytes += size;
      std::int64_t before = peak;
      while (now > before && !peak.compare_exchange_weak(before, now)) {
      }
    }
    bool memoryProfilingEnabled() const override { return true; }
    const c10::DeviceType device;
    const std::shared_ptr<c10::ThreadLocalDebugInfo> around;  // keeps `outer` alive
    c10::MemoryReportingInfoBase* const outer;
    std::atomic<std::int64_t> bytes{0}, peak{0};
  };
  std::shared_ptr<Reporter> reporter_;
  c10::DebugInfoGuard guard_;
};

}  // namespace recoup
