#include "profile.h"

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace recoup {
namespace {

// How many forwards of a part are remembered: the median of more says no more.
constexpr std::size_t kMaxTimes = 1000;

double median(std::vector<double> v) {
  if (v.size() > 1) v.erase(v.begin());  // the first call warms up
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace

void Profile::forward_begins(const RegionInfo& region,
                             const std::vector<at::Tensor>& inputs) noexcept {
  Running running;
  for (const auto& t : inputs) {
    if (!t.defined()) continue;
    running.input_bytes += static_cast<std::int64_t>(t.nbytes());
    if (t.has_storage()) running.inputs.insert(t.storage().unsafeGetStorageImpl());
  }
  const std::lock_guard<std::mutex> guard(mutex_);
  running.start = Clock::now();
  running_[region.run] = std::move(running);
}

void Profile::saved(const RegionInfo& region, const at::Tensor& t) noexcept {
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto entry = running_.find(region.run);
  if (entry == running_.end()) return;
  auto& running = entry->second;
  running.last_saved_ms = ms_since(running.start);
  if (!t.has_storage()) return;
  // A parameter, or a view of one.
  const auto& base = t.is_view() ? t._base() : t;
  if (base.is_leaf() && base.requires_grad()) return;
  const auto* storage = t.storage().unsafeGetStorageImpl();
  if (running.seen.insert(storage).second && running.inputs.count(storage) == 0) {
    running.saved_bytes += static_cast<std::int64_t>(storage->nbytes());
  }
}

void Profile::forward_ends(const RegionInfo& region) noexcept {
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto entry = running_.find(region.run);
  if (entry == running_.end()) return;
  const auto& running = entry->second;
  // A host of version 1.0 gives no part.
  const Key key(region.layer_number, region.part.empty() ? region.name : region.part);
  auto [place, fresh] = measured_.try_emplace(key);
  if (fresh) order_.push_back(key);
  auto& m = place->second;
  m.input_bytes = running.input_bytes;
  m.saved_bytes = running.saved_bytes - region.kept_bytes;  // those a recompute keeps too
  m.extra_bytes = 0;
  for (const auto* storage : running.inputs) {
    if (running.seen.count(storage) == 0) {
      m.extra_bytes += static_cast<std::int64_t>(storage->nbytes());
    }
  }
  if (m.forward_ms.size() < kMaxTimes) {
    m.forward_ms.push_back(ms_since(running.start));
    m.recompute_ms.push_back(running.last_saved_ms);
  }
  running_.erase(entry);
  if (doubling_.due(++runs_)) write_locked();  // where it fails, the last write says so
}

std::string Profile::write() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return write_locked();
}

std::string Profile::write_locked() {
  auto regions = nlohmann::json::array();
  for (const auto& key : order_) {
    const auto& m = measured_.at(key);
    regions.push_back({{"layer", key.first},
                       {"part", key.second},
                       {"input_bytes", m.input_bytes},
                       {"extra_bytes", m.extra_bytes},
                       {"saved_bytes", m.saved_bytes},
                       {"forward_ms", median(m.forward_ms)},
                       {"recompute_ms", median(m.recompute_ms)}});
  }
  const nlohmann::json profile = {{"recoup_profile", 1}, {"regions", regions}};
  return output_.write([&](std::ostream& out) {
    out << profile.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  });
}

}  // namespace recoup
