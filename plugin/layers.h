// The layers that a host has constructed: what each recomputes, which one was given twice, and
// which one was told to recompute and never ran a checkpoint.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "recoup/plugin.h"

namespace recoup {

// The "out" fields of recoup_layer_v1 but for the handle.
struct Decision {
  std::int32_t recompute_mlp = 0;
  std::uint32_t recompute_modules = 0;
  std::int64_t full_group = 0;
  std::int32_t mlp_activation_only = 0;
  std::int32_t distribute_saved_activations = 0;
  std::int32_t profile = 0;

  void write_to(recoup_layer_v1& layer) const;
};

// Any thread.
class Layers {
 public:
  // Keeps a layer; its handle for decide(). `warning` is left empty or gets a sentence.
  void* add(std::int64_t number, const Decision& decision, std::string* warning);

  // What add() was given, and where `number` is not null the layer's; nothing where it gave no
  // such handle.
  std::optional<Decision> decide(const void* handle, std::int64_t* number = nullptr) const;

  // A checkpoint of the layer begins its forward; 0 where the host does not say what it is. Returns
  // a sentence where a step is over (this region has run before and something has been recomputed
  // since) in which a layer that was told to recompute did not run. Said once.
  std::string forward_begins(std::int64_t number, std::uint64_t modules);
  void recompute_begins() { recomputed_.store(true, std::memory_order_relaxed); }

  // The same sentence at the end, where it has not been said.
  std::string never_ran();

 private:
  struct Told {
    std::uint64_t modules = 0;  // or kWhole
    std::uint64_t ran = 0;
  };
  static constexpr std::uint64_t kWhole = std::uint64_t{1} << 63;  // granularity full
  std::string missing();

  mutable std::mutex mutex_;
  std::vector<std::pair<std::int64_t, Decision>> decisions_;  // with the layer's number
  std::map<std::int64_t, Told> told_;                         // by layer number
  bool said_twice_ = false;
  std::atomic<bool> recomputed_{false};
  std::atomic<bool> watching_{true};
};

}  // namespace recoup
