#include "recompute_state.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>

#include <algorithm>

#include "torch_private.h"

namespace recoup {

namespace {

using Devices = c10::SmallVector<at::Device, 2>;

// The devices other than the CPU that a forward may use, each once: those of its inputs and those
// of the process's accelerator that are initialized. What a forward will use is not known before it
// has run, and ids on the CPU may go in where a model on a GPU comes out.
Devices devices_of(const std::vector<at::Tensor>& inputs) {
  Devices devices;
  const auto add = [&](at::Device device) {
    if (device.is_cpu() || device.is_meta()) return;
    if (std::find(devices.begin(), devices.end(), device) == devices.end()) {
      devices.push_back(device);
    }
  };
  for (const auto& input : inputs) {
    if (input.defined()) add(input.device());
  }
  if (const auto type = at::getAccelerator(/*checked=*/false)) {
    const auto& accelerator = at::globalContext().getAcceleratorHooksInterface(*type);
    const auto count = accelerator.deviceCount();
    for (c10::DeviceIndex i = 0; i < count; ++i) {
      if (accelerator.hasPrimaryContext(i)) add({*type, i});
    }
  }
  return devices;
}

}  // namespace

RngWatch::RngWatch(const std::vector<at::Tensor>& inputs, bool preserve_rng) {
  if (!preserve_rng) return;
  before_.emplace_back(at::globalContext().defaultGenerator(at::kCPU));
  for (const auto& device : devices_of(inputs)) {
    before_.emplace_back(at::globalContext().defaultGenerator(device));
  }
}

std::vector<RngState> RngWatch::drawn() const {
  std::vector<RngState> drawn;
  for (const auto& state : before_) {
    if (state.drawn_since()) drawn.push_back(state);
  }
  return drawn;
}

RecomputeState::RecomputeState(const std::vector<at::Tensor>& inputs) {
  const auto devices = devices_of(inputs);
  for (const auto& device : devices) {
    streams_.push_back(torch_private::VirtualGuardImpl(device.type()).getStream(device));
  }

  const auto autocast = [this](at::DeviceType type) {
    if (!at::autocast::is_autocast_available(type)) return;
    for (const auto& known : autocast_) {
      if (known.device == type) return;
    }
    autocast_.push_back(
        {type, at::autocast::is_autocast_enabled(type), at::autocast::get_autocast_dtype(type)});
  };
  autocast(at::kCPU);
  for (const auto& device : devices) autocast(device.type());
}

bool RecomputeState::autocast() const {
  return std::any_of(autocast_.begin(), autocast_.end(), [](const auto& a) { return a.enabled; });
}

ScopedAutocastCache::ScopedAutocastCache(bool used) : used_(used) {
  if (!used_) return;
  before_ = at::autocast::is_autocast_cache_enabled();
  const bool within_another = at::autocast::increment_nesting() > 1;
  if (within_another) at::autocast::set_autocast_cache_enabled(false);
}

ScopedAutocastCache::~ScopedAutocastCache() {
  if (!used_) return;
  at::autocast::set_autocast_cache_enabled(before_);
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
}

ScopedRecomputeState::ScopedRecomputeState(const RecomputeState& state) : cache_(state.autocast()) {
  for (const auto& then : state.autocast_) {
    const RecomputeState::Autocast now{then.device, at::autocast::is_autocast_enabled(then.device),
                                       at::autocast::get_autocast_dtype(then.device)};
    if (now.enabled == then.enabled && now.dtype == then.dtype) continue;
    autocast_before_.push_back(now);
    at::autocast::set_autocast_enabled(then.device, then.enabled);
    at::autocast::set_autocast_dtype(then.device, then.dtype);
  }
  for (const auto& stream : state.streams_) {
    streams_.push_back(std::make_unique<c10::StreamGuard>(stream));
  }
  for (const auto& drawn : state.rng_) rng_.push_back(std::make_unique<ScopedRng>(drawn));
}

ScopedRecomputeState::~ScopedRecomputeState() {
  rng_.clear();
  while (!streams_.empty()) streams_.pop_back();  // inner guards first
  for (const auto& before : autocast_before_) {
    at::autocast::set_autocast_enabled(before.device, before.enabled);
    at::autocast::set_autocast_dtype(before.device, before.dtype);
  }
}

}  // namespace recoup
