#include "recoup/activation_meter.h"

#include <algorithm>
#include <mutex>

namespace recoup {

class ActivationMeter::Reporter final : public c10::MemoryReportingInfoBase {
 public:
  explicit Reporter(c10::DeviceType device) : device_(device) {}

  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device device) override {
    if (device.type() != device_) return;
    const std::lock_guard<std::mutex> guard(mutex_);
    bytes_ += size;
    peak_ = std::max(peak_, bytes_);
  }
  bool memoryProfilingEnabled() const override { return true; }

  std::int64_t bytes() const {
    const std::lock_guard<std::mutex> guard(mutex_);
    return bytes_;
  }
  std::int64_t peak() const {
    const std::lock_guard<std::mutex> guard(mutex_);
    return peak_;
  }
  void reset_peak() {
    const std::lock_guard<std::mutex> guard(mutex_);
    peak_ = bytes_;
  }

 private:
  const c10::DeviceType device_;
  mutable std::mutex mutex_;
  std::int64_t bytes_ = 0, peak_ = 0;
};

ActivationMeter::ActivationMeter(c10::DeviceType device)
    : reporter_(std::make_shared<Reporter>(device)),
      guard_(c10::DebugInfoKind::PROFILER_STATE, reporter_) {}

std::int64_t ActivationMeter::bytes() const { return reporter_->bytes(); }
std::int64_t ActivationMeter::peak_bytes() const { return reporter_->peak(); }
void ActivationMeter::reset_peak() { reporter_->reset_peak(); }

}  // namespace recoup
