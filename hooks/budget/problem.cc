#include "problem.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

namespace recoup::budget {

Problem Problem::of(const Model& model, std::int64_t budget) {
  const auto& t = model.timeline();
  const auto kept = model.predict(model.kept());
  Problem p;
  std::map<std::pair<std::int64_t, std::string>, std::int64_t> kinds;
  for (const auto& u : t.units) kinds[{u.layer, u.part}] = 0;
  std::int64_t kind = 0;
  for (auto& [key, number] : kinds) number = kind++;
  for (std::size_t u = 0; u < t.units.size(); ++u) {
    const auto& m = model.units()[u];
    Unit unit{};
    unit.dropped = m.dropped;
    unit.cost = m.cost_ns;
    unit.microbatch = t.units[u].microbatch;
    unit.kind = kinds[{t.units[u].layer, t.units[u].part}];
    unit.forward_term = m.forward;
    for (std::size_t l = 0; l < kLevels; ++l) {
      unit.may[l] = t.units[u].may(static_cast<Level>(l));
      unit.rerun_term[l] = m.rerun[l] - m.dropped[l];
    }
    p.units.push_back(unit);
  }
  // Constraints that follow each other with the same units alive are one: the largest.
  bool open = false;
  const auto own = [&](std::int64_t need) {
    p.need.push_back(need);
    open = false;
    return static_cast<std::int32_t>(p.need.size()) - 1;
  };
  std::int32_t inside = -1;
  for (std::size_t i = 0; i < t.events.size(); ++i) {
    const auto& e = t.events[i];
    if (inside < 0) {
      const auto need = kept.peaks[i] - budget;
      if (open) {
        p.need.back() = std::max(p.need.back(), need);
      } else {
        p.need.push_back(need);
        open = true;
      }
    }
    if (e.unit < 0) continue;
    auto& unit = p.units[static_cast<std::size_t>(e.unit)];
    switch (e.kind) {
      case EventKind::kForwardBegin:
        unit.forward = own(kept.bytes[i] - budget);
        inside = e.unit;
        break;
      case EventKind::kForwardEnd:
        unit.first = static_cast<std::int32_t>(p.need.size());
        inside = -1;
        break;
      case EventKind::kBackwardBegin:
        unit.last = static_cast<std::int32_t>(p.need.size());
        unit.rerun = own(kept.bytes[i] - budget);
        inside = e.unit;
        break;
      case EventKind::kRerunEnd:
        inside = -1;
        break;
      default:
        break;
    }
  }
  return p;
}

Trial::Trial(const Problem& problem)
    : problem_(&problem), levels_(problem.units.size(), 0), rest_(problem.need) {
  for (const auto& u : problem.units) {
    rest_[u.forward] += u.forward_term[0];
    rest_[u.rerun] += u.rerun_term[0];
    cost_ += u.cost[0];
  }
  for (const auto r : rest_) violation_ += std::max<std::int64_t>(r, 0);
}

void Trial::add(std::int32_t c, std::int64_t amount) {
  violation_ -= std::max<std::int64_t>(rest_[c], 0);
  rest_[c] += amount;
  violation_ += std::max<std::int64_t>(rest_[c], 0);
}

void Trial::set(std::size_t unit, std::uint8_t level) {
  const auto& u = problem_->units[unit];
  const auto before = levels_[unit];
  if (before == level) return;
  const auto less = u.dropped[level] - u.dropped[before];
  std::int64_t violation = 0;
  for (auto c = u.first; c < u.last; ++c) {
    violation -= std::max<std::int64_t>(rest_[c], 0);
    rest_[c] -= less;
    violation += std::max<std::int64_t>(rest_[c], 0);
  }
  violation_ += violation;
  add(u.forward, u.forward_term[level] - u.forward_term[before]);
  add(u.rerun, u.rerun_term[level] - u.rerun_term[before]);
  cost_ += u.cost[level] - u.cost[before];
  levels_[unit] = level;
  work_ += u.last - u.first + 2;
}

std::int64_t Trial::gain(std::size_t unit, std::uint8_t level) const {
  const auto& u = problem_->units[unit];
  const auto before = levels_[unit];
  const auto change = [&](std::int32_t c, std::int64_t amount) {
    return std::max<std::int64_t>(rest_[c], 0) - std::max<std::int64_t>(rest_[c] + amount, 0);
  };
  const auto less = u.dropped[level] - u.dropped[before];
  auto gain = change(u.forward, u.forward_term[level] - u.forward_term[before]) +
              change(u.rerun, u.rerun_term[level] - u.rerun_term[before]);
  for (auto c = u.first; c < u.last; ++c) gain += change(c, -less);
  work_ += u.last - u.first + 2;
  return gain;
}

bool Trial::keeps_feasible(std::size_t unit, std::uint8_t level) const {
  const auto& u = problem_->units[unit];
  const auto before = levels_[unit];
  const auto holds = [&](std::int32_t c, std::int64_t amount) {
    return amount <= 0 || rest_[c] + amount <= 0;
  };
  const auto more = u.dropped[before] - u.dropped[level];
  if (!holds(u.forward, u.forward_term[level] - u.forward_term[before]) ||
      !holds(u.rerun, u.rerun_term[level] - u.rerun_term[before])) {
    return false;
  }
  for (auto c = u.first; c < u.last; ++c) {
    if (!holds(c, more)) {
      work_ += c - u.first + 3;
      return false;
    }
  }
  work_ += u.last - u.first + 2;
  return true;
}

void longest_lived_first(const Problem& problem, Levels& levels) {
  std::map<std::tuple<std::int64_t, PerLevel, PerLevel, std::array<bool, kLevels>>,
           std::vector<std::size_t>>
      alike;
  for (std::size_t i = 0; i < problem.units.size(); ++i) {
    const auto& u = problem.units[i];
    alike[{u.microbatch, u.dropped, u.cost, u.may}].push_back(i);
  }
  Trial trial(problem);
  for (std::size_t i = 0; i < levels.size(); ++i) trial.set(i, levels[i]);
  if (!trial.feasible()) return;
  for (auto& [key, members] : alike) {
    std::stable_sort(members.begin(), members.end(), [&](std::size_t a, std::size_t b) {
      const auto &x = problem.units[a], &y = problem.units[b];
      return x.last - x.first > y.last - y.first;
    });
    Levels sorted;
    for (const auto i : members) sorted.push_back(levels[i]);
    std::sort(sorted.rbegin(), sorted.rend());
    for (std::size_t k = 0; k < members.size(); ++k) trial.set(members[k], sorted[k]);
    if (trial.feasible()) {
      for (std::size_t k = 0; k < members.size(); ++k) levels[members[k]] = sorted[k];
    } else {
      for (const auto i : members) trial.set(i, levels[i]);
    }
  }
}

}  // namespace recoup::budget
