// Any problem: a covering greedy, a release, and ruin and recreate around both.
#include <algorithm>
#include <map>
#include <queue>
#include <tuple>

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

// Units that are at one level together: each by itself, or a layer's in all microbatches.
using Item = std::vector<std::uint32_t>;

struct Move {
  std::int64_t cost, gain;
  std::uint32_t item;
  std::uint8_t level, from;
};

// Whether b is the better move: less cost for each byte gained; then the earlier item.
bool worse(const Move& a, const Move& b) {
  const auto x = static_cast<__int128>(a.cost) * b.gain, y = static_cast<__int128>(b.cost) * a.gain;
  if (x != y) return x > y;
  return std::make_pair(a.item, a.level) > std::make_pair(b.item, b.level);
}

class Search {
 public:
  Search(const Problem& problem, const std::vector<Item>& items)
      : problem_(problem), items_(items), trial_(problem), weight_(items.size(), 1024) {}

  bool run(Levels& levels);

 private:
  const Problem::Unit& unit(std::size_t item) const { return problem_.units[items_[item][0]]; }
  std::uint8_t level(std::size_t item) const { return trial_.levels()[items_[item][0]]; }
  std::int64_t cost(std::size_t item, std::uint8_t level) const {
    return unit(item).cost[level] * static_cast<std::int64_t>(items_[item].size());
  }
  void set(std::size_t item, std::uint8_t level) {
    for (const auto u : items_[item]) trial_.set(u, level);
  }
  std::int64_t gain(std::size_t item, std::uint8_t to) {
    if (items_[item].size() == 1) return trial_.gain(items_[item][0], to);
    const auto from = level(item);
    const auto before = trial_.violation();
    set(item, to);
    const auto after = trial_.violation();
    set(item, from);
    return before - after;
  }
  bool try_lower(std::size_t item, std::uint8_t to) {
    if (items_[item].size() == 1) {
      if (!trial_.keeps_feasible(items_[item][0], to)) return false;
      set(item, to);
      return true;
    }
    const auto from = level(item);
    set(item, to);
    if (trial_.feasible()) return true;
    set(item, from);
    return false;
  }
  void cover();
  void release();
  void set_all(const Levels& levels) {
    for (std::size_t i = 0; i < levels.size(); ++i) trial_.set(i, levels[i]);
  }

  const Problem& problem_;
  const std::vector<Item>& items_;
  Trial trial_;
  std::vector<std::int64_t> weight_;  // bends the costs, in 1/1024
};

// Makes moves until nothing is violated. Gains mostly shrink while moves are made, so an old gain
// is an upper bound and moves are looked at again only when they come up.
void Search::cover() {
  std::priority_queue<Move, std::vector<Move>, bool (*)(const Move&, const Move&)> moves(&worse);
  const auto offer = [&](std::size_t item) {
    const auto from = level(item);
    for (std::uint8_t l = 0; l < kLevels; ++l) {
      if (l == from || !unit(item).may[l]) continue;
      const auto gained = gain(item, l);
      if (gained <= 0) continue;
      const auto more = std::max<std::int64_t>(cost(item, l) - cost(item, from), 0);
      moves.push({more * weight_[item], gained, static_cast<std::uint32_t>(item), l, from});
    }
  };
  bool progress = true;
  while (!trial_.feasible()) {
    if (moves.empty()) {  // a move may have become worth it since it was looked at
      if (!progress) return;
      progress = false;
      for (std::size_t i = 0; i < items_.size(); ++i) offer(i);
      if (moves.empty()) return;
    }
    auto best = moves.top();
    moves.pop();
    if (level(best.item) != best.from) continue;
    best.gain = gain(best.item, best.level);
    if (best.gain <= 0) continue;
    if (!moves.empty() && worse(best, moves.top())) {
      moves.push(best);
      continue;
    }
    set(best.item, best.level);
    progress = true;
    offer(best.item);
  }
}

// Takes back what is not needed, the dearest first.
void Search::release() {
  std::vector<std::pair<std::int64_t, std::size_t>> dear;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    if (level(i) > 0) dear.push_back({-cost(i, level(i)), i});
  }
  std::sort(dear.begin(), dear.end());
  for (const auto& [negative, i] : dear) {
    for (std::uint8_t l = 0; l < level(i); ++l) {
      if (unit(i).may[l] && cost(i, l) <= cost(i, level(i)) && try_lower(i, l)) break;
    }
  }
}

bool Search::run(Levels& levels) {
  const auto n = items_.size();
  cover();
  if (!trial_.feasible()) {  // from the other end: all that may be, and back where that is too much
    for (std::size_t i = 0; i < n; ++i) {
      for (std::uint8_t l = kLevels; l-- > 0;) {
        if (unit(i).may[l]) {
          set(i, l);
          break;
        }
      }
    }
    cover();
    if (!trial_.feasible()) return false;
  }
  release();
  levels = trial_.levels();
  auto least = trial_.cost();
  if (least == 0) return true;

  Random random;
  auto current = levels;
  auto current_cost = least;
  for (int round = 0; round < kMostRounds && trial_.work() < kMostWork; ++round) {
    // Ruin: some items anywhere, or neighbours in time; recreate with costs bent at random.
    const auto count = 1 + random.below(std::max<std::uint64_t>(n / 3, 3));
    const auto start = random.below(n);
    const bool neighbours = random.below(2) == 0;
    for (std::uint64_t k = 0; k < std::min<std::uint64_t>(count, n); ++k) {
      set(neighbours ? (start + k) % n : random.below(n), 0);
    }
    for (auto& w : weight_) {
      w = 1024 + static_cast<std::int64_t>(random.below(round % 2 == 0 ? 256 : 2048));
    }
    cover();
    if (trial_.feasible()) release();
    if (trial_.feasible() && trial_.cost() <= current_cost) {
      current = trial_.levels();
      current_cost = trial_.cost();
      if (current_cost < least) levels = current, least = current_cost;
    } else {
      set_all(current);
    }
  }
  return true;
}

}  // namespace

bool solve_any(const Problem& problem, Levels& levels) {
  std::vector<Item> items;
  for (std::size_t i = 0; i < problem.units.size(); ++i)
    items.push_back({static_cast<std::uint32_t>(i)});
  return Search(problem, items).run(levels);
}

bool solve_same(const Problem& problem, Levels& levels) {
  std::map<std::int64_t, Item> of_kind;
  for (std::size_t i = 0; i < problem.units.size(); ++i) {
    of_kind[problem.units[i].kind].push_back(static_cast<std::uint32_t>(i));
  }
  std::vector<Item> items;
  for (auto& [kind, item] : of_kind) items.push_back(item);
  if (!Search(problem, items).run(levels)) return false;
  // Among alike items the first layers, in all microbatches, where that fits.
  std::map<std::tuple<std::size_t, PerLevel, PerLevel, std::array<bool, kLevels>>,
           std::vector<Item>>
      alike;
  for (const auto& item : items) {
    const auto& u = problem.units[item[0]];
    alike[{item.size(), u.dropped, u.cost, u.may}].push_back(item);
  }
  Trial trial(problem);
  for (std::size_t i = 0; i < levels.size(); ++i) trial.set(i, levels[i]);
  for (const auto& [key, members] : alike) {
    Levels sorted, before = trial.levels();
    for (const auto& item : members) sorted.push_back(before[item[0]]);
    std::sort(sorted.rbegin(), sorted.rend());
    for (std::size_t k = 0; k < members.size(); ++k) {
      for (const auto u : members[k]) trial.set(u, sorted[k]);
    }
    if (trial.feasible()) continue;
    for (std::size_t i = 0; i < before.size(); ++i) trial.set(i, before[i]);
  }
  levels = trial.levels();
  return true;
}

}  // namespace recoup::budget
