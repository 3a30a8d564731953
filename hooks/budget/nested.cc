// The chain program: exact where lives nest.
//
// With the units ordered from the outermost life to the innermost, the constraints over which
// exactly the first k are alive ask for the same sum of the first k units' dropped bytes. So the
// states after k units are pairs (dropped bytes, cost), of which only those count that no other
// beats in both.
#include <algorithm>
#include <limits>
#include <numeric>

#include "problem.h"

namespace recoup::budget {
namespace {

constexpr std::size_t kMostStates = 2048;

struct State {
  std::int64_t dropped, cost;
  std::uint32_t from;  // in the states before
  std::uint8_t level;
};

std::vector<std::size_t> outermost_first(const Problem& problem) {
  std::vector<std::size_t> order(problem.units.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return problem.units[a].forward < problem.units[b].forward;
  });
  return order;
}

// Keeps the cheapest state in each bin of dropped bytes; states are ascending in both.
void bin(std::vector<State>& states) {
  const auto low = states.front().dropped;
  const auto width = (states.back().dropped - low) / static_cast<std::int64_t>(kMostStates) + 1;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < states.size(); ++i) {
    const bool last = i + 1 == states.size();
    if (kept == 0 || last ||
        (states[i].dropped - low) / width != (states[kept - 1].dropped - low) / width) {
      states[kept++] = states[i];
    }
  }
  states.resize(kept);
}

}  // namespace

bool nested(const Problem& problem) {
  const auto order = outermost_first(problem);
  for (std::size_t k = 1; k < order.size(); ++k) {
    const auto &outer = problem.units[order[k - 1]], &inner = problem.units[order[k]];
    if (inner.forward < outer.first || inner.rerun >= outer.last) return false;
  }
  return true;
}

bool solve_nested(const Problem& problem, Levels& levels) {
  const auto order = outermost_first(problem);
  const auto n = order.size();
  constexpr auto kNothing = std::numeric_limits<std::int64_t>::min() / 4;
  // What the first k units must have dropped.
  std::vector<std::int64_t> need(n + 1, kNothing);
  std::vector<std::int32_t> change(problem.need.size() + 1);
  std::vector<bool> own(problem.need.size());
  for (const auto& u : problem.units) {
    ++change[u.first], --change[u.last];
    own[u.forward] = own[u.rerun] = true;
  }
  std::int32_t depth = 0;
  for (std::size_t c = 0; c < problem.need.size(); ++c) {
    depth += change[c];
    if (!own[c]) need[depth] = std::max(need[depth], problem.need[c]);
  }
  // What those before unit k must have dropped for it to be at a level.
  const auto before = [&](std::size_t k, std::size_t level) {
    const auto& u = problem.units[order[k]];
    return std::max(problem.need[u.forward] + u.forward_term[level],
                    problem.need[u.rerun] + u.rerun_term[level]);
  };
  // Dropping more than anything later asks for is as good as dropping just that.
  std::vector<std::int64_t> enough(n + 1, kNothing);
  for (auto k = n + 1; k-- > 0;) {
    enough[k] = need[k];
    if (k == n) continue;
    enough[k] = std::max(enough[k], enough[k + 1]);
    for (std::size_t l = 0; l < kLevels; ++l) {
      if (problem.units[order[k]].may[l]) enough[k] = std::max(enough[k], before(k, l));
    }
  }
  std::vector<std::vector<State>> states(n + 1);
  if (need[0] > 0) return false;
  states[0] = {{0, 0, 0, 0}};
  for (std::size_t k = 0; k < n; ++k) {
    const auto& u = problem.units[order[k]];
    const auto& last = states[k];
    auto& next = states[k + 1];
    // Merges the levels' lists from the most dropped down; each is ascending in both numbers.
    std::array<std::size_t, kLevels> left{};
    std::array<std::size_t, kLevels> lowest{};
    for (std::size_t l = 0; l < kLevels; ++l) {
      if (!u.may[l]) continue;
      left[l] = last.size();
      const auto least = before(k, l);
      lowest[l] = static_cast<std::size_t>(
          std::partition_point(last.begin(), last.end(),
                               [&](const State& s) { return s.dropped < least; }) -
          last.begin());
    }
    const auto dropped = [&](std::size_t l, std::size_t i) {
      return std::min(last[i].dropped + u.dropped[l], std::max<std::int64_t>(enough[k + 1], 0));
    };
    auto cheapest = std::numeric_limits<std::int64_t>::max();
    while (true) {
      std::size_t best = kLevels;
      std::int64_t best_dropped = 0, best_cost = 0;
      for (std::size_t l = 0; l < kLevels; ++l) {
        if (left[l] <= lowest[l]) continue;
        const auto d = dropped(l, left[l] - 1), c = last[left[l] - 1].cost + u.cost[l];
        if (best == kLevels || d > best_dropped || (d == best_dropped && c < best_cost)) {
          best = l, best_dropped = d, best_cost = c;
        }
      }
      if (best == kLevels || best_dropped < need[k + 1]) break;
      --left[best];
      if (best_cost >= cheapest) continue;
      cheapest = best_cost;
      if (!next.empty() && next.back().dropped == best_dropped) next.pop_back();
      next.push_back({best_dropped, best_cost, static_cast<std::uint32_t>(left[best]),
                      static_cast<std::uint8_t>(best)});
    }
    if (next.empty()) return false;
    std::reverse(next.begin(), next.end());
    if (next.size() > kMostStates) bin(next);
  }
  levels.assign(n, 0);
  std::size_t at = 0;  // the cheapest: the least dropped
  for (auto k = n; k > 0; --k) {
    levels[order[k - 1]] = states[k][at].level;
    at = states[k][at].from;
  }
  return true;
}

}  // namespace recoup::budget
