#include "recoup/checkpoint/events.h"

#include <algorithm>

namespace recoup {
namespace {

class All final : public EventListener {
 public:
  explicit All(std::vector<std::shared_ptr<EventListener>> listeners)
      : listeners_(std::move(listeners)) {}

  void forward_begins(const RegionInfo& region,
                      const std::vector<at::Tensor>& inputs) noexcept override {
    for (const auto& l : listeners_) l->forward_begins(region, inputs);
  }
  void saved(const RegionInfo& region, const at::Tensor& tensor) noexcept override {
    for (const auto& l : listeners_) l->saved(region, tensor);
  }
  void forward_ends(const RegionInfo& region) noexcept override {
    for (const auto& l : listeners_) l->forward_ends(region);
  }
  void backward_begins(const RegionInfo& region) noexcept override {
    for (const auto& l : listeners_) l->backward_begins(region);
  }
  void recompute_begins(const RegionInfo& region) noexcept override {
    for (const auto& l : listeners_) l->recompute_begins(region);
  }
  void recompute_ends(const RegionInfo& region) noexcept override {
    for (const auto& l : listeners_) l->recompute_ends(region);
  }
  void released(const RegionInfo& region) noexcept override {
    for (const auto& l : listeners_) l->released(region);
  }

 private:
  const std::vector<std::shared_ptr<EventListener>> listeners_;
};

}  // namespace

std::shared_ptr<EventListener> all_listeners(
    std::vector<std::shared_ptr<EventListener>> listeners) {
  listeners.erase(std::remove(listeners.begin(), listeners.end(), nullptr), listeners.end());
  if (listeners.empty()) return nullptr;
  if (listeners.size() == 1) return listeners[0];
  return std::make_shared<All>(std::move(listeners));
}

}  // namespace recoup
