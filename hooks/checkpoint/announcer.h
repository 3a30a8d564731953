// What a listener hears of a region. Nothing is kept and nothing costs more than a load where
// nobody listens.
#pragma once

#include <atomic>
#include <memory>

#include "recoup/checkpoint/checkpoint.h"

namespace recoup {

class Announcer {
 public:
  explicit Announcer(const CheckpointOptions& options);
  using Event = void (EventListener::*)(const RegionInfo&) noexcept;
  void tell(Event event) const {
    if (listener_) (listener_.get()->*event)(*info_);
  }
  void forward_begins(const Tensors& inputs) const {
    if (listener_) listener_->forward_begins(*info_, inputs);
  }
  void saved(const at::Tensor& t) const {
    if (listener_) listener_->saved(*info_, t);
  }
  void keeps(std::int64_t bytes) {
    if (listener_) info_->kept_bytes = bytes;
  }
  // Before an unpack: backward_begins for the first of each backward.
  void unpacks();

 private:
  std::shared_ptr<EventListener> listener_;
  std::unique_ptr<RegionInfo> info_;
  std::atomic<int> backward_{-1};  // the last one announced
};

}  // namespace recoup
