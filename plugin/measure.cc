#include "measure.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace recoup {
namespace {

thread_local const std::int64_t* fc1_bytes_of_forward = nullptr;

}  // namespace

Fc1Bytes::Fc1Bytes(const std::int64_t* bytes) { fc1_bytes_of_forward = bytes; }
Fc1Bytes::~Fc1Bytes() { fc1_bytes_of_forward = nullptr; }

Measure::Moment Measure::now(c10::DeviceType device) {
  Moment moment;
  moment.time = std::chrono::steady_clock::now();
  if (device != c10::DeviceType::CPU) {
    const c10::impl::VirtualGuardImpl guard(device);
    moment.event = std::make_shared<c10::Event>(device, c10::EventFlag::BACKEND_DEFAULT);
    moment.event->record(guard.getStream(guard.getDevice()));
  }
  return moment;
}

std::int64_t Measure::ns(const Moment& from, const Moment& to) {
  if (from.event == nullptr || to.event == nullptr) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(to.time - from.time).count();
  }
  to.event->synchronize();
  return static_cast<std::int64_t>(1e6 * from.event->elapsedTime(*to.event));
}

// Calls body(controller, memory, running) for a run of a step that is measured. An exception would
// end the host's forward or backward: the step is not measured then.
template <class Body>
void Measure::with(const RegionInfo& region, Body body) noexcept {
  const auto controller = controller_.lock();
  if (controller == nullptr) return;
  try {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto running = running_.find(region.run);
    if (running != running_.end()) body(*controller, running->second);
  } catch (...) {
    controller->spoil();
  }
}

void Measure::forward_begins(const RegionInfo& region,
                             const std::vector<at::Tensor>& inputs) noexcept {
  const auto controller = controller_.lock();
  if (controller == nullptr) return;
  try {
    Running running;
    running.fc1_bytes = fc1_bytes_of_forward;
    for (const auto& t : inputs) {
      if (!t.defined() || !t.has_storage()) continue;
      running.device = t.device().type();
      if (running.unsaved.insert(t.storage().unsafeGetStorageImpl()).second) {
        running.storages.emplace_back(t.storage().getWeakStorageImpl());
      }
    }
    running.forward = now(running.device);
    const std::lock_guard<std::mutex> guard(mutex_);
    running_[region.run] = std::move(running);
    controller->unit_begins(region.run, region.layer_number,
                            region.part.empty() ? "part" : region.part, region.module,
                            region.microbatch, controller->measure());
  } catch (...) {
    controller->spoil();
  }
}

void Measure::saved(const RegionInfo& region, const at::Tensor& t) noexcept {
  with(region, [&](Controller&, Running& running) {
    if (t.has_storage()) running.unsaved.erase(t.storage().unsafeGetStorageImpl());
    // The first that is saved once fc1's output is there: fc1 has just ended.
    if (!running.fc1 && running.fc1_bytes != nullptr && *running.fc1_bytes > 0) {
      running.fc1 = now(running.device);
    }
  });
}

void Measure::forward_ends(const RegionInfo& region) noexcept {
  with(region, [&](Controller& controller, Running& running) {
    const auto fc1 = running.fc1_bytes != nullptr ? running.fc1_bytes[0] : 0;
    const bool held = fc1 > 0 && running.fc1_bytes[1] != 0;
    running.fc1_bytes = nullptr;  // lives no longer than the forward
    controller.record().forward_ends(region.run, fc1, held, controller.measure());
  });
}

void Measure::backward_begins(const RegionInfo& region) noexcept {
  with(region, [&](Controller& controller, Running& running) {
    // Inputs that a kept forward would not have saved, and that nobody else holds any more.
    std::int64_t extra = 0;
    for (const auto& weak : running.storages) {
      if (weak.use_count() != 1) continue;
      const auto storage = weak.lock();
      if (storage && running.unsaved.count(storage.get()) > 0) {
        extra += static_cast<std::int64_t>(storage->nbytes());
      }
    }
    controller.record().backward_begins(region.run, extra, controller.measure());
  });
}

void Measure::recompute_begins(const RegionInfo& region) noexcept {
  with(region, [&](Controller&, Running& running) { running.rerun = now(running.device); });
}

void Measure::recompute_ends(const RegionInfo& region) noexcept {
  with(region, [&](Controller& controller, Running& running) {
    running.rerun_end = now(running.device);
    controller.record().rerun_ends(region.run, controller.measure());
  });
}

void Measure::released(const RegionInfo& region) noexcept {
  with(region, [&](Controller& controller, Running&) {
    controller.record().backward_ends(region.run, controller.measure());
  });
}

void Measure::finish() {
  const auto controller = controller_.lock();
  const std::lock_guard<std::mutex> guard(mutex_);
  for (const auto& [run, r] : running_) {
    if (controller == nullptr || !r.rerun || !r.rerun_end) continue;
    const auto full = std::max<std::int64_t>(ns(*r.rerun, *r.rerun_end), 1);
    const auto fc1 = r.fc1 ? ns(*r.forward, *r.fc1) : 0;
    controller->record().costs(run, std::clamp<std::int64_t>(full - fc1, 1, full), full);
  }
  running_.clear();
}

std::shared_ptr<void> measure_regions(const std::shared_ptr<Controller>& controller) {
  const auto measure = std::make_shared<Measure>(controller);
  controller->before_finish([measure] { measure->finish(); });
  return std::static_pointer_cast<EventListener>(measure);
}

}  // namespace recoup
