#include "recoup/budget/timeline.h"

#include <algorithm>

namespace recoup::budget {

std::int64_t Timeline::peak() const {
  std::int64_t most = 0;
  for (const auto& e : events) most = std::max(most, e.peak);
  return most;
}

std::string Timeline::describe(std::size_t i) const {
  const auto& e = events[i];
  const auto name = [this](std::int32_t u) {
    const auto& unit = units[static_cast<std::size_t>(u)];
    return "layer " + std::to_string(unit.layer) + " " + unit.part + ", microbatch " +
           std::to_string(unit.microbatch);
  };
  switch (e.kind) {
    case EventKind::kForwardBegin:
      return "the stretch before the forward of " + name(e.unit);
    case EventKind::kForwardEnd:
      return "the forward of " + name(e.unit);
    case EventKind::kBackwardBegin:
      return "the stretch before the backward of " + name(e.unit);
    case EventKind::kRerunEnd:
      return "the rerun of " + name(e.unit);
    case EventKind::kBackwardEnd:
      return "the backward of " + name(e.unit);
    case EventKind::kMark:
      return "outside the units";
    case EventKind::kStepEnd:
      return "after the last backward, the optimizer's step";
  }
  return {};
}

Result<bool> check(const Timeline& t) {
  const auto at = [](std::size_t i) { return "event " + std::to_string(i) + ": "; };
  std::vector<int> seen(t.units.size(), 0);
  std::int32_t inside = -1;  // the unit whose own forward or rerun is open
  for (std::size_t i = 0; i < t.events.size(); ++i) {
    const auto& e = t.events[i];
    if (e.bytes < 0 || e.peak < e.bytes || (i > 0 && e.peak < t.events[i - 1].bytes)) {
      return Error{at(i) + "a peak below the bytes at its ends"};
    }
    if ((e.kind == EventKind::kStepEnd) != (i + 1 == t.events.size())) {
      return Error{at(i) + "the step's end must be the last event, once"};
    }
    if (e.kind == EventKind::kMark || e.kind == EventKind::kStepEnd) continue;
    if (e.unit < 0 || static_cast<std::size_t>(e.unit) >= t.units.size()) {
      return Error{at(i) + "unit " + std::to_string(e.unit) + ", but there are " +
                   std::to_string(t.units.size())};
    }
    auto& next = seen[static_cast<std::size_t>(e.unit)];
    if (next != static_cast<int>(e.kind)) {
      return Error{at(i) + t.describe(i) + " is missing an event before it, or is there twice"};
    }
    ++next;
    const bool opens = e.kind == EventKind::kForwardBegin || e.kind == EventKind::kBackwardBegin;
    if (inside >= 0 && inside != e.unit && e.kind != EventKind::kBackwardEnd) {
      return Error{at(i) + t.describe(i) + " lies inside another unit's forward or rerun"};
    }
    if (inside == e.unit || opens) inside = opens ? e.unit : -1;
  }
  if (t.events.empty()) return Error{"no event"};
  for (std::size_t u = 0; u < t.units.size(); ++u) {
    if (seen[u] != 5) {
      return Error{"unit " + std::to_string(u) + " (layer " + std::to_string(t.units[u].layer) +
                   " " + t.units[u].part + ") has " + std::to_string(seen[u]) +
                   " of its 5 events: forward's begin and end, backward's begin, rerun's end, "
                   "backward's end"};
    }
  }
  return true;
}

}  // namespace recoup::budget
