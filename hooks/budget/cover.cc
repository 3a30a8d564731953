// Any problem: a covering greedy, a release, and ruin and recreate around both.
#include <algorithm>
#include <numeric>
#include <queue>

#include "problem.h"

namespace recoup::budget {
namespace {

// Work in elements of constraints; 1,000 units get through in some tens of milliseconds.
constexpr std::int64_t kMostWork = 25'000'000;
constexpr int kMostRounds = 1500;

// xorshift64*: the same numbers on every machine.
class Random {
 public:
  std::uint64_t below(std::uint64_t n) {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return (state_ * 0x2545F4914F6CDD1DULL >> 32) % n;
  }

 private:
  std::uint64_t state_ = 0x9E3779B97F4A7C15ULL;
};

struct Move {
  std::int64_t cost, gain;
  std::uint32_t unit;
  std::uint8_t level, from;
};

// Whether b is the better move: less cost for each byte gained; then the earlier unit.
bool worse(const Move& a, const Move& b) {
  const auto x = static_cast<__int128>(a.cost) * b.gain, y = static_cast<__int128>(b.cost) * a.gain;
  if (x != y) return x > y;
  return std::make_pair(a.unit, a.level) > std::make_pair(b.unit, b.level);
}

// Makes moves until nothing is violated. `weight` (in 1/1024, for each unit) bends the costs.
// Gains only shrink while moves are made, so an old gain is an upper bound and moves are looked at
// again only when they come up.
void cover(const Problem& problem, Trial& trial, const std::vector<std::int64_t>& weight) {
  std::priority_queue<Move, std::vector<Move>, bool (*)(const Move&, const Move&)> moves(&worse);
  const auto offer = [&](std::size_t unit) {
    const auto& u = problem.units[unit];
    const auto from = trial.levels()[unit];
    for (std::uint8_t l = 0; l < kLevels; ++l) {
      if (l == from || !u.may[l]) continue;
      const auto gain = trial.gain(unit, l);
      if (gain <= 0) continue;
      const auto cost = std::max<std::int64_t>(u.cost[l] - u.cost[from], 0) * weight[unit];
      moves.push({cost, gain, static_cast<std::uint32_t>(unit), l, from});
    }
  };
  bool progress = true;
  while (!trial.feasible()) {
    if (moves.empty()) {  // a move may have become worth it since it was looked at
      if (!progress) return;
      progress = false;
      for (std::size_t i = 0; i < problem.units.size(); ++i) offer(i);
      if (moves.empty()) return;
    }
    auto best = moves.top();
    moves.pop();
    if (trial.levels()[best.unit] != best.from) continue;
    best.gain = trial.gain(best.unit, best.level);
    if (best.gain <= 0) continue;
    if (!moves.empty() && worse(best, moves.top())) {
      moves.push(best);
      continue;
    }
    trial.set(best.unit, best.level);
    progress = true;
    offer(best.unit);
  }
}

// Takes back what is not needed, the dearest first.
void release(const Problem& problem, Trial& trial) {
  std::vector<std::pair<std::int64_t, std::size_t>> dear;
  for (std::size_t i = 0; i < problem.units.size(); ++i) {
    const auto cost = problem.units[i].cost[trial.levels()[i]];
    if (trial.levels()[i] > 0) dear.push_back({-cost, i});
  }
  std::sort(dear.begin(), dear.end());
  for (const auto& [cost, i] : dear) {
    const auto& u = problem.units[i];
    for (std::uint8_t l = 0; l < trial.levels()[i]; ++l) {
      if (u.may[l] && u.cost[l] <= u.cost[trial.levels()[i]] && trial.keeps_feasible(i, l)) {
        trial.set(i, l);
        break;
      }
    }
  }
}

void set_all(Trial& trial, const Levels& levels) {
  for (std::size_t i = 0; i < levels.size(); ++i) trial.set(i, levels[i]);
}

}  // namespace

bool solve_any(const Problem& problem, Levels& levels) {
  const auto n = problem.units.size();
  Trial trial(problem);
  std::vector<std::int64_t> weight(n, 1024);
  cover(problem, trial, weight);
  if (!trial.feasible()) {  // from the other end: all that may be, and back where that is too much
    for (std::size_t i = 0; i < n; ++i) {
      for (std::uint8_t l = kLevels; l-- > 0;) {
        if (problem.units[i].may[l]) {
          trial.set(i, l);
          break;
        }
      }
    }
    cover(problem, trial, weight);
    if (!trial.feasible()) return false;
  }
  release(problem, trial);
  levels = trial.levels();
  auto least = trial.cost();
  if (least == 0) return true;

  Random random;
  auto current = levels;
  auto current_cost = least;
  for (int round = 0; round < kMostRounds && trial.work() < kMostWork; ++round) {
    // Ruin: some units anywhere, or neighbours in time; recreate with costs bent at random.
    const auto count = 1 + random.below(std::max<std::uint64_t>(n / 3, 3));
    const auto start = random.below(n);
    const bool neighbours = random.below(2) == 0;
    for (std::uint64_t k = 0; k < std::min<std::uint64_t>(count, n); ++k) {
      trial.set(neighbours ? (start + k) % n : random.below(n), 0);
    }
    for (auto& w : weight)
      w = 1024 + static_cast<std::int64_t>(random.below(round % 2 == 0 ? 256 : 2048));
    cover(problem, trial, weight);
    if (trial.feasible()) release(problem, trial);
    if (trial.feasible() && trial.cost() <= current_cost) {
      current = trial.levels();
      current_cost = trial.cost();
      if (current_cost < least) levels = current, least = current_cost;
    } else {
      set_all(trial, current);
    }
  }
  return true;
}

}  // namespace recoup::budget
