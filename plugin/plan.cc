#include "plan.h"

#include <algorithm>

#include "recoup/modules.h"
#include "recoup/policy/memory_budget.h"

namespace recoup {

using budget::Level;

Plan::Plan(const budget::Model& model, budget::Decisions decisions,
           const std::vector<PartKey>& keys, bool by_microbatch)
    : decisions_(std::move(decisions)), by_microbatch_(by_microbatch) {
  const auto key_of = [&](std::size_t u) {
    auto key = keys[u];
    if (!by_microbatch_) key.microbatch = 0;
    return key;
  };
  for (std::size_t u = 0; u < decisions_.size(); ++u) {
    auto& part = parts_.try_emplace(key_of(u), Part{Level::kKept, -1}).first->second;
    part.level = std::max(part.level, decisions_[u]);
    only_mlps_ = only_mlps_ && keys[u].module == RECOUP_MLP;
  }
  const auto& units = model.timeline().units;
  for (std::size_t u = 0; u < decisions_.size(); ++u) {
    const auto level = parts_.at(key_of(u)).level;
    if (units[u].may(level)) decisions_[u] = level;
  }
  prediction_ = model.predict(decisions_);
}

const Plan::Part* Plan::find(PartKey key) const {
  if (!by_microbatch_) key.microbatch = 0;
  const auto part = parts_.find(key);
  return part == parts_.end() ? nullptr : &part->second;
}

void Plan::set_input_bytes(PartKey key, std::int64_t bytes) {
  if (!by_microbatch_) key.microbatch = 0;
  const auto part = parts_.find(key);
  if (part != parts_.end()) part->second.input_bytes = bytes;
}

std::string Plan::text(std::int64_t measured_peak) const {
  const auto at = [&](Level level) {
    return std::to_string(std::count(decisions_.begin(), decisions_.end(), level));
  };
  const auto all = std::to_string(decisions_.size());
  auto text = all + " of " + all + (only_mlps_ ? " MLPs" : " parts") + " recomputed, peak " +
              bytes_text(measured_peak) + "; " + at(Level::kKept) + " released, ";
  if (at(Level::kActivation) != "0") text += at(Level::kActivation) + " at level activation, ";
  return text + "predicted " + bytes_text(prediction_.peak);
}

std::string bytes_text(std::int64_t bytes) {
  MemoryBudget budget;
  budget.kind = MemoryBudget::Kind::kBytes;
  budget.bytes = std::max<std::int64_t>(bytes, 0);
  return budget.text();
}

}  // namespace recoup
