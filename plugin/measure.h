// Hears the regions of a measured step and tells the controller: the memory at each event, what a
// rerun takes, and what only a checkpoint keeps.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/StorageImpl.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "controller.h"
#include "recoup/checkpoint/events.h"

namespace recoup {

// Where the host's forward, that this thread is about to run, writes the bytes of fc1's output and
// whether it holds it (recoup_region_v1.fc1_bytes); may be null.
class Fc1Bytes {
 public:
  explicit Fc1Bytes(const std::int64_t* bytes);
  ~Fc1Bytes();
  Fc1Bytes(const Fc1Bytes&) = delete;
  Fc1Bytes& operator=(const Fc1Bytes&) = delete;
};

class Measure final : public EventListener {
 public:
  explicit Measure(std::weak_ptr<Controller> controller) : controller_(std::move(controller)) {}

  void forward_begins(const RegionInfo& region,
                      const std::vector<at::Tensor>& inputs) noexcept override;
  void saved(const RegionInfo& region, const at::Tensor& tensor) noexcept override;
  void forward_ends(const RegionInfo& region) noexcept override;
  void backward_begins(const RegionInfo& region) noexcept override;
  void recompute_begins(const RegionInfo& region) noexcept override;
  void recompute_ends(const RegionInfo& region) noexcept override;
  void released(const RegionInfo& region) noexcept override;

  // The step is over: what reruns took is known now.
  void finish();

 private:
  // A moment, on the device's stream where it has one.
  struct Moment {
    std::chrono::steady_clock::time_point time;
    std::shared_ptr<c10::Event> event;
  };
  struct Running {
    c10::DeviceType device = c10::DeviceType::CPU;
    std::optional<Moment> forward, fc1, rerun, rerun_end;
    const std::int64_t* fc1_bytes = nullptr;
    // Of the inputs: those not saved so far.
    std::set<const c10::StorageImpl*> unsaved;
    std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages;
  };
  static Moment now(c10::DeviceType device);
  static std::int64_t ns(const Moment& from, const Moment& to);
  template <class Body>
  void with(const RegionInfo& region, Body body) noexcept;

  const std::weak_ptr<Controller> controller_;
  std::mutex mutex_;
  std::map<std::uint64_t, Running> running_;  // of this step, by run
};

std::shared_ptr<void> measure_regions(const std::shared_ptr<Controller>& controller);

}  // namespace recoup
