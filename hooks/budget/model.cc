#include "recoup/budget/model.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace recoup::budget {
namespace {

constexpr std::size_t kKept = index(Level::kKept), kActivation = index(Level::kActivation),
                      kFull = index(Level::kFull);

// Where a unit's events stand in the timeline.
struct Places {
  std::size_t event[5];
  std::size_t of(EventKind kind) const { return event[static_cast<std::size_t>(kind)]; }
};

std::vector<Places> places_of(const Timeline& t) {
  std::vector<Places> places(t.units.size());
  for (std::size_t i = 0; i < t.events.size(); ++i) {
    const auto& e = t.events[i];
    if (e.unit >= 0) {
      places[static_cast<std::size_t>(e.unit)].event[static_cast<std::size_t>(e.kind)] = i;
    }
  }
  return places;
}

// The most in the events (from, to] over what was allocated at `from`.
std::int64_t rise(const Timeline& t, std::size_t from, std::size_t to) {
  auto most = t.events[from].bytes;
  for (auto i = from + 1; i <= to; ++i) most = std::max(most, t.events[i].peak);
  return most - t.events[from].bytes;
}

UnitModel measure(const Timeline& t, const Unit& u, const Places& at) {
  const auto bytes = [&](EventKind kind) { return t.events[at.of(kind)].bytes; };
  const auto base = index(u.level);
  auto held = bytes(EventKind::kForwardEnd) - bytes(EventKind::kForwardBegin) + u.extra_bytes[base];
  auto forward = rise(t, at.of(EventKind::kForwardBegin), at.of(EventKind::kForwardEnd));
  auto rerun = rise(t, at.of(EventKind::kBackwardBegin), at.of(EventKind::kRerunEnd));
  auto gained = bytes(EventKind::kRerunEnd) - bytes(EventKind::kBackwardBegin);

  UnitModel m{};
  m.cost_ns = u.cost_ns;
  m.cost_ns[kKept] = 0;
  if (u.level == Level::kKept) {
    // What a rerun would have done is not seen: it can need no more than the forward did, without
    // its output; and its forward no more than the kept one.
    const auto full = std::max<std::int64_t>(held - u.output_bytes - u.extra_bytes[kFull], 0);
    m.forward = {forward, forward, forward};
    m.rerun[kFull] = std::max(forward - u.output_bytes, full);
    m.dropped[kFull] = full;
  } else {
    if (u.level == Level::kActivation) {  // what full would have dropped and gained beside it
      held += u.extra_bytes[kFull] - u.extra_bytes[kActivation] - u.fc1_bytes;
      gained += u.fc1_bytes + u.extra_bytes[kActivation] - u.extra_bytes[kFull];
      rerun += u.fc1_bytes;
    }
    m.dropped[kFull] = gained;
    m.rerun[kFull] = rerun;
    m.forward[kFull] = forward;
    m.forward[kKept] = std::max(forward, rerun + u.output_bytes);
  }
  // At kActivation fc1's output stays, and the input that only a full checkpoint keeps does not.
  m.dropped[kActivation] = std::max<std::int64_t>(
      m.dropped[kFull] + u.extra_bytes[kFull] - u.extra_bytes[kActivation] - u.fc1_bytes, 0);
  m.rerun[kActivation] = std::max<std::int64_t>(m.rerun[kFull] - u.fc1_bytes, 0);
  m.forward[kActivation] = u.level == Level::kActivation || u.holds_fc1
                               ? forward
                               : std::min(m.forward[kKept], m.forward[kFull] + u.fc1_bytes);
  m.rerun[kKept] = 0;
  return m;
}

}  // namespace

Result<Model> Model::from(Timeline timeline) {
  if (const auto ok = check(timeline); !ok.ok()) return Error{ok.error().text};
  Model model;
  const auto places = places_of(timeline);
  std::map<std::tuple<std::string, PerLevel, std::int64_t, PerLevel>, std::vector<std::size_t>>
      alike;
  for (std::size_t u = 0; u < timeline.units.size(); ++u) {
    const auto& unit = timeline.units[u];
    const auto m = measure(timeline, unit, places[u]);
    model.units_.push_back(m);
    alike[{unit.part, m.dropped, unit.output_bytes, m.rerun}].push_back(u);
  }
  // Noise in the times must not make alike layers look unlike.
  for (const auto& [key, members] : alike) {
    for (const auto level : {kActivation, kFull}) {
      std::vector<std::int64_t> costs;
      for (const auto u : members) costs.push_back(model.units_[u].cost_ns[level]);
      std::nth_element(costs.begin(), costs.begin() + costs.size() / 2, costs.end());
      for (const auto u : members) model.units_[u].cost_ns[level] = costs[costs.size() / 2];
    }
  }
  model.timeline_ = std::move(timeline);
  return model;
}

Prediction Model::predict(const Decisions& decisions) const {
  const auto& events = timeline_.events;
  // Shifts as differences: at events[i], and over what lies between events[i - 1] and events[i].
  std::vector<std::int64_t> at(events.size() + 2), before(events.size() + 2);
  const auto places = places_of(timeline_);
  Prediction p;
  for (std::size_t u = 0; u < units_.size(); ++u) {
    const auto shift =
        units_[u].dropped[index(timeline_.units[u].level)] - units_[u].dropped[index(decisions[u])];
    const auto from = places[u].of(EventKind::kForwardEnd),
               to = places[u].of(EventKind::kBackwardBegin);
    // Inputs that only a checkpoint keeps are still there when the forward ends, and go at some
    // time before the next event where none keeps them: the larger of both is taken up to there.
    const auto extra = timeline_.units[u].extra_bytes[index(decisions[u])] -
                       timeline_.units[u].extra_bytes[index(timeline_.units[u].level)];
    at[from] += shift - extra, at[from + 1] += extra, at[to + 1] -= shift;
    const auto early = std::max<std::int64_t>(-extra, 0);
    before[from + 1] += shift + early, before[from + 2] -= early, before[to + 1] -= shift;
    p.cost_ns += units_[u].cost_ns[index(decisions[u])];
  }
  std::int64_t shift_at = 0, shift_before = 0;
  for (std::size_t i = 0; i < events.size(); ++i) {
    shift_at += at[i], shift_before += before[i];
    p.bytes.push_back(events[i].bytes + shift_at);
    p.peaks.push_back(events[i].peak + shift_before);
  }
  for (std::size_t u = 0; u < units_.size(); ++u) {
    const auto level = index(decisions[u]);
    const auto own = [&](EventKind begin, EventKind end, std::int64_t most) {
      const auto first = places[u].of(begin), last = places[u].of(end);
      for (auto i = first + 1; i <= last; ++i) p.peaks[i] = p.bytes[first] + most;
    };
    own(EventKind::kForwardBegin, EventKind::kForwardEnd, units_[u].forward[level]);
    own(EventKind::kBackwardBegin, EventKind::kRerunEnd, units_[u].rerun[level]);
  }
  p.holder =
      static_cast<std::size_t>(std::max_element(p.peaks.begin(), p.peaks.end()) - p.peaks.begin());
  p.peak = p.peaks[p.holder];
  return p;
}

Decisions Model::measured() const {
  Decisions d;
  for (const auto& u : timeline_.units) d.push_back(u.level);
  return d;
}

Decisions Model::deepest() const {
  Decisions d;
  for (std::size_t u = 0; u < units_.size(); ++u) {
    auto best = Level::kKept;
    for (const auto level : {Level::kFull, Level::kActivation}) {
      if (timeline_.units[u].may(level) &&
          units_[u].dropped[index(level)] > units_[u].dropped[index(best)]) {
        best = level;
      }
    }
    d.push_back(best);
  }
  return d;
}

}  // namespace recoup::budget
