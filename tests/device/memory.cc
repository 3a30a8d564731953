#include "memory.h"

#include <torch/version.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <vector>

#include "streams.h"

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9
#define TESTDEV_STATISTICS
#include <c10/core/CachingDeviceAllocator.h>
#endif

namespace testdev {
namespace {

struct Counter {
  std::atomic<std::int64_t> now{0}, peak{0};
  void add(std::int64_t bytes) {
    const auto value = now += bytes;
    auto most = peak.load();
    while (value > most && !peak.compare_exchange_weak(most, value)) {
    }
  }
};
std::array<Counter, kDevices> counters;

struct Block {
  void* data;
  std::size_t bytes;
  c10::Stream stream;  // that it was allocated on
  std::mutex mutex;
  std::vector<c10::Stream> used_on;
};

void poison(void* data, std::size_t bytes) { std::memset(data, 0xff, bytes); }

// Keeps freed memory poisoned and unused for as long as can be, so that a late read finds the
// poison.
void quarantine(void* data, std::size_t bytes) {
  constexpr std::size_t kMost = std::size_t{256} << 20;
  static std::mutex mutex;
  static auto* const freed = new std::deque<std::pair<void*, std::size_t>>();
  static std::size_t total = 0;
  poison(data, bytes);
  const std::lock_guard<std::mutex> guard(mutex);
  freed->emplace_back(data, bytes);
  for (total += bytes; total > kMost; freed->pop_front()) {
    total -= freed->front().second;
    std::free(freed->front().first);
  }
}

// Freed memory may be used again by the stream that it came from, in that stream's order, and by
// others once the streams that it was recorded on have passed this point.
void release(void* context) {
  auto* block = static_cast<Block*>(context);
  counters.at(block->stream.device_index()).add(-static_cast<std::int64_t>(block->bytes));
  auto streams = block->used_on;
  streams.push_back(block->stream);
  const auto waiting = std::make_shared<std::atomic<std::size_t>>(streams.size());
  for (const auto& stream : streams) {
    enqueue(stream, [waiting, data = block->data, bytes = block->bytes] {
      if (--*waiting == 0) quarantine(data, bytes);
    });
  }
  delete block;
}

#ifdef TESTDEV_STATISTICS
using Base = c10::DeviceAllocator;
#else
using Base = c10::Allocator;
#endif

class DeviceMemory final : public Base {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    const auto device = current_device();
    const c10::Device where(c10::kPrivateUse1, device);
    if (bytes == 0) return {nullptr, where};
    auto* block = new Block{std::malloc(bytes), bytes, current_stream(device), {}, {}};
    poison(block->data, bytes);
    counters.at(device).add(static_cast<std::int64_t>(bytes));
    return {block->data, block, &release, where};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

#ifdef TESTDEV_STATISTICS
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override {}
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    record_stream(data, stream);
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* all : {&stats.requested_bytes, &stats.allocated_bytes}) {
      auto& total = (*all)[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
      total.current = bytes_now(device);
      total.peak = bytes_peak(device);
    }
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override { reset_peak(device); }
#endif
};

}  // namespace

c10::Allocator* allocator() {
  static auto* const memory = new DeviceMemory();
  return memory;
}

std::int64_t bytes_now(c10::DeviceIndex device) { return counters.at(device).now; }
std::int64_t bytes_peak(c10::DeviceIndex device) { return counters.at(device).peak; }
void reset_peak(c10::DeviceIndex device) {
  counters.at(device).peak = counters.at(device).now.load();
}

void record_stream(const c10::DataPtr& data, const c10::Stream& stream) {
  auto* block = static_cast<Block*>(data.get_context());
  if (block == nullptr || block->stream == stream) return;
  const std::lock_guard<std::mutex> guard(block->mutex);
  for (const auto& known : block->used_on) {
    if (known == stream) return;
  }
  block->used_on.push_back(stream);
}

}  // namespace testdev
