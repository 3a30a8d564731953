#include "device_memory.h"

#include <torch/version.h>

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11)
#define RECOUP_ASKS_ALLOCATOR
#include <ATen/DeviceAccelerator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <memory>
#endif

namespace recoup {

#ifdef RECOUP_ASKS_ALLOCATOR
namespace {

// Requested bytes: what tensors asked for. They do not depend on which cached block happened to
// fit, as allocated bytes do, and fall when a tensor goes, as reserved bytes do not.
class Accelerator {
 public:
  explicit Accelerator(c10::DeviceAllocator* allocator) : allocator_(allocator) {}

  bool read(bool restart, budget::Memory* memory) {
    if (!allocator_->initialized()) {  // no tensor yet
      *memory = {};
      return true;
    }
    const auto device = at::accelerator::getDeviceIndex();
    const auto stats = allocator_->getDeviceStats(device);
    memory->bytes = stats.requested_bytes[0].current;
    memory->peak = stats.requested_bytes[0].peak;
    const auto troubles = stats.num_alloc_retries + stats.num_ooms;
    memory->short_of = troubles > troubles_;
    troubles_ = troubles;
    if (restart) allocator_->resetPeakStats(device);
    return true;
  }

  // The allocator needs a few percent more than what is requested, and others (the context,
  // communication, libraries' workspaces) stand outside of it.
  std::int64_t requested(std::int64_t budget, double share) const {
    const auto device = at::accelerator::getDeviceIndex();
    const auto [free, total] = allocator_->getMemoryInfo(device);
    const auto reserved = allocator_->getDeviceStats(device).reserved_bytes[0].current;
    const auto outside =
        static_cast<std::int64_t>(total) - static_cast<std::int64_t>(free) - reserved;
    return static_cast<std::int64_t>(share * static_cast<double>(budget)) - outside;
  }

  std::int64_t total() const {
    return static_cast<std::int64_t>(
        allocator_->getMemoryInfo(at::accelerator::getDeviceIndex()).second);
  }

 private:
  c10::DeviceAllocator* const allocator_;
  std::int64_t troubles_ = 0;
};

}  // namespace

std::optional<DeviceMemory> device_memory(const Settings& settings) {
  const auto type = at::getAccelerator(false);
  if (!type || at::accelerator::deviceCount() == 0) return std::nullopt;
  auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(*type));
  if (allocator == nullptr) return std::nullopt;
  const auto accelerator = std::make_shared<Accelerator>(allocator);
  // What a run needs beyond its requested bytes, at most, by the allocator's own rules.
  const double share = settings.expandable_segments ? 0.97 : 0.95;
  DeviceMemory memory;
  memory.memory = [accelerator](bool restart, budget::Memory* m) {
    return accelerator->read(restart, m);
  };
  memory.requested = [accelerator, share](std::int64_t budget) {
    return accelerator->requested(budget, share);
  };
  memory.device_bytes = [accelerator] { return accelerator->total(); };
  return memory;
}
#else
// Its statistics cannot be had without CUDA's headers; hosts give recoup_host_v1.memory.
std::optional<DeviceMemory> device_memory(const Settings&) { return std::nullopt; }
#endif

}  // namespace recoup
