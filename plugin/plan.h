// The levels that a memory budget has chosen, as forwards ask for them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "recoup/budget/choose.h"

namespace recoup {

// A part of a layer as a host says it: one bit of recoup_module, and the microbatch's number from
// 1 (0: not told).
struct PartKey {
  std::int64_t layer = 0;
  std::uint32_t module = 0;
  std::int64_t microbatch = 0;
  bool operator==(const PartKey& o) const {
    return layer == o.layer && module == o.module && microbatch == o.microbatch;
  }
};
struct PartKeyHash {
  std::size_t operator()(const PartKey& k) const {
    const auto mix = static_cast<std::uint64_t>(k.layer) << 40 ^
                     static_cast<std::uint64_t>(k.microbatch) << 20 ^ k.module;
    return static_cast<std::size_t>(mix * 0x9e3779b97f4a7c15u >> 16);
  }
};

// For one shape of a step. Parts of one module in one layer and microbatch are at one level.
class Plan {
 public:
  struct Part {
    budget::Level level = budget::Level::kFull;
    std::int64_t input_bytes = -1;  // as measured; below 0: unknown
  };
  // `keys`: of each unit of the model. `by_microbatch`: whether the keys' microbatches count; else
  // a part's deepest level is that of all.
  Plan(const budget::Model& model, budget::Decisions decisions, const std::vector<PartKey>& keys,
       bool by_microbatch);

  // Null where the measured step had no such part.
  const Part* find(PartKey key) const;
  void set_input_bytes(PartKey key, std::int64_t bytes);

  const budget::Decisions& decisions() const { return decisions_; }
  const budget::Prediction& prediction() const { return prediction_; }
  // What an all-recomputed step of this shape and what the plan needs: "24 of 24 MLPs recomputed,
  // peak 55.60 GiB; 19 released, predicted 73.81 GiB".
  std::string text(std::int64_t measured_peak) const;

 private:
  budget::Decisions decisions_;
  budget::Prediction prediction_;
  std::unordered_map<PartKey, Part, PartKeyHash> parts_;
  bool by_microbatch_;
  bool only_mlps_ = true;
};

// "74.00 GiB"
std::string bytes_text(std::int64_t bytes);

}  // namespace recoup
