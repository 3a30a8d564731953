#include "recoup/budget/record.h"

#include <algorithm>
#include <utility>

namespace recoup::budget {

void Record::add(EventKind kind, std::int32_t unit, Memory memory) {
  // A backward that needed no rerun, because all that it read was kept, ends with what follows.
  if (const auto open = std::exchange(reruns_, -1); open >= 0 && open != unit) {
    if (kind != EventKind::kBackwardEnd)
      add(EventKind::kRerunEnd, open, memory);
    else
      reruns_ = open;
  }
  if (kind == EventKind::kBackwardBegin) reruns_ = unit;
  // The allocator's peak is read a moment after its bytes where other threads allocate.
  auto peak = std::max(memory.peak, memory.bytes);
  if (!timeline_.events.empty()) peak = std::max(peak, timeline_.events.back().bytes);
  timeline_.events.push_back({kind, unit, memory.bytes, peak});
}

Unit* Record::find(std::uint64_t run, std::int32_t* index) {
  const auto unit = units_.find(run);
  if (unit == units_.end()) return nullptr;
  *index = unit->second;
  return &timeline_.units[static_cast<std::size_t>(unit->second)];
}

void Record::forward_begins(std::uint64_t run, Unit unit, Memory memory) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (unit.microbatch < 0) {
    unit.microbatch =
        std::count_if(timeline_.units.begin(), timeline_.units.end(),
                      [&](const Unit& u) { return u.layer == unit.layer && u.part == unit.part; });
  }
  const auto index = static_cast<std::int32_t>(timeline_.units.size());
  units_[run] = index;
  timeline_.units.push_back(std::move(unit));
  add(EventKind::kForwardBegin, index, memory);
}

void Record::forward_ends(std::uint64_t run, std::int64_t fc1_bytes, bool holds_fc1,
                          Memory memory) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::int32_t index = -1;
  auto* unit = find(run, &index);
  if (unit == nullptr) return;
  unit->fc1_bytes = fc1_bytes;
  unit->holds_fc1 = holds_fc1;
  unit->may_activation = unit->may_activation && fc1_bytes > 0;
  add(EventKind::kForwardEnd, index, memory);
  // What it holds beside the output are a recomputed unit's small tensors: a kept one's too.
  const auto begin = std::find_if(
      timeline_.events.rbegin(), timeline_.events.rend(),
      [&](const Event& e) { return e.unit == index && e.kind == EventKind::kForwardBegin; });
  unit->output_bytes = std::max<std::int64_t>(memory.bytes - begin->bytes, 0);
}

void Record::backward_begins(std::uint64_t run, std::int64_t extra_bytes, Memory memory) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::int32_t index = -1;
  auto* unit = find(run, &index);
  if (unit == nullptr) return;
  for (auto& e : timeline_.events) {
    if (e.unit != index) continue;
    if (e.kind == EventKind::kBackwardBegin || e.kind == EventKind::kRerunEnd) {
      e.kind = EventKind::kMark;
      e.unit = -1;
    }
  }
  unit->extra_bytes[recoup::budget::index(Level::kFull)] = extra_bytes;
  add(EventKind::kBackwardBegin, index, memory);
}

void Record::rerun_ends(std::uint64_t run, Memory memory) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::int32_t index = -1;
  if (find(run, &index) != nullptr) add(EventKind::kRerunEnd, index, memory);
}

void Record::backward_ends(std::uint64_t run, Memory memory) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::int32_t index = -1;
  if (find(run, &index) == nullptr) return;
  const auto has = [&](EventKind kind) {
    return std::any_of(timeline_.events.begin(), timeline_.events.end(),
                       [&](const Event& e) { return e.unit == index && e.kind == kind; });
  };
  for (const auto kind :
       {EventKind::kForwardEnd, EventKind::kBackwardBegin, EventKind::kRerunEnd}) {
    if (!has(kind)) add(kind, index, memory);
  }
  add(EventKind::kBackwardEnd, index, memory);
}

void Record::costs(std::uint64_t run, std::int64_t activation_ns, std::int64_t full_ns) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::int32_t index = -1;
  if (auto* unit = find(run, &index)) unit->cost_ns = {0, activation_ns, full_ns};
}

Result<Timeline> Record::finish(Memory memory) {
  const std::lock_guard<std::mutex> guard(mutex_);
  add(EventKind::kStepEnd, -1, memory);
  auto timeline = std::exchange(timeline_, {});
  units_.clear();
  reruns_ = -1;
  if (const auto ok = check(timeline); !ok.ok()) return Error{ok.error().text};
  return timeline;
}

void Record::clear() {
  const std::lock_guard<std::mutex> guard(mutex_);
  timeline_ = {};
  units_.clear();
  reruns_ = -1;
}

}  // namespace recoup::budget
