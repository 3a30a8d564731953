// The pipeline rule: every microbatch recomputes as much as every other, give or take one unit.
//
// For one microbatch the moves from nothing to everything stand in one order, the ladder: least
// recompute for each byte first, and among alike layers the longest-lived. A microbatch is at some
// rung; two rungs next to each other serve all, and who is on the upper one is spread evenly and
// begins elsewhere on each stage.
#include <algorithm>
#include <map>

#include "problem.h"

namespace recoup::budget {
namespace {

struct Rung {
  std::size_t unit;  // in the problem
  std::uint8_t level;
};

// The moves of one microbatch's units in the ladder's order.
std::vector<Rung> ladder(const Problem& problem, const std::vector<std::size_t>& units) {
  struct Move {
    std::int64_t cost, bytes, life;
    Rung rung;
  };
  std::vector<Move> moves;
  for (const auto i : units) {
    const auto& u = problem.units[i];
    std::uint8_t from = 0;
    while (true) {  // the levels on the convex hull of cost over bytes
      std::uint8_t best = 0;
      std::int64_t best_cost = 0, best_bytes = 0;
      for (std::uint8_t l = static_cast<std::uint8_t>(from + 1); l < kLevels; ++l) {
        const auto cost = u.cost[l] - u.cost[from], bytes = u.dropped[l] - u.dropped[from];
        if (!u.may[l] || bytes <= 0) continue;
        if (best == 0 ||
            static_cast<__int128>(cost) * best_bytes <= static_cast<__int128>(best_cost) * bytes) {
          best = l, best_cost = cost, best_bytes = bytes;
        }
      }
      if (best == 0) break;
      moves.push_back({best_cost, best_bytes, u.last - u.first, {i, best}});
      from = best;
    }
  }
  std::stable_sort(moves.begin(), moves.end(), [](const Move& a, const Move& b) {
    const auto x = static_cast<__int128>(a.cost) * b.bytes,
               y = static_cast<__int128>(b.cost) * a.bytes;
    return x != y ? x < y : a.life > b.life;
  });
  std::vector<Rung> rungs;
  for (const auto& m : moves) rungs.push_back(m.rung);
  return rungs;
}

}  // namespace

bool solve_pipeline(const Problem& problem, std::int64_t stage, Levels& levels) {
  std::map<std::int64_t, std::vector<std::size_t>> of_microbatch;
  for (std::size_t i = 0; i < problem.units.size(); ++i) {
    of_microbatch[problem.units[i].microbatch].push_back(i);
  }
  const auto count = static_cast<std::int64_t>(of_microbatch.size());
  if (count == 0) return false;
  std::vector<std::vector<Rung>> ladders;
  std::int64_t most = 0;
  // Microbatches that run their forward before the first backward: the pipeline's warm-up.
  std::int32_t first_rerun = INT32_MAX;
  for (const auto& u : problem.units) first_rerun = std::min(first_rerun, u.rerun);
  std::vector<bool> warm_up;
  for (const auto& [microbatch, units] : of_microbatch) {
    ladders.push_back(ladder(problem, units));
    most = std::max(most, static_cast<std::int64_t>(ladders.back().size()));
    warm_up.push_back(problem.units[units.front()].forward < first_rerun);
  }
  Trial trial(problem);
  std::vector<std::int64_t> at(ladders.size(), 0);
  const auto climb = [&](std::size_t m, std::int64_t to) {
    const auto size = static_cast<std::int64_t>(ladders[m].size());
    to = std::clamp<std::int64_t>(to, 0, size);
    for (; at[m] < to; ++at[m]) {
      const auto& r = ladders[m][static_cast<std::size_t>(at[m])];
      trial.set(r.unit, r.level);
    }
    for (; at[m] > to; --at[m]) {
      const auto& r = ladders[m][static_cast<std::size_t>(at[m] - 1)];
      std::uint8_t below = 0;  // the rung of the same unit beneath
      for (std::int64_t k = 0; k + 1 < at[m]; ++k) {
        const auto& b = ladders[m][static_cast<std::size_t>(k)];
        if (b.unit == r.unit) below = b.level;
      }
      trial.set(r.unit, below);
    }
  };
  // `total` rungs over all microbatches, spread evenly; stages begin at different microbatches.
  const auto feasible = [&](std::int64_t total) {
    for (std::int64_t m = 0; m < count; ++m) {
      const auto i = (m + stage) % count;
      climb(static_cast<std::size_t>(m), (i + 1) * total / count - i * total / count);
    }
    return trial.feasible();
  };
  std::int64_t low = 0, high = most * count;
  if (!feasible(high)) return false;
  while (low < high) {
    const auto middle = (low + high) / 2;
    if (feasible(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  if (!feasible(high)) return false;
  // Less in the warm-up slows no stage down, and there the first gradients are not there yet.
  for (std::size_t m = 0; m < ladders.size(); ++m) {
    while (warm_up[m] && at[m] > 0) {
      climb(m, at[m] - 1);
      if (!trial.feasible()) {
        climb(m, at[m] + 1);
        break;
      }
    }
  }
  levels = trial.levels();
  return true;
}

}  // namespace recoup::budget
