#include "recoup/budget/choose.h"

#include <algorithm>
#include <numeric>

#include "problem.h"

namespace recoup::budget {
namespace {

// The problem's parts that no unit joins, each with its units' numbers in the whole.
struct Part {
  Problem problem;
  std::vector<std::size_t> units;
};

// False where a constraint that no unit can change is violated.
bool split(const Problem& whole, std::vector<Part>& parts) {
  std::vector<std::size_t> order(whole.units.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return whole.units[a].forward < whole.units[b].forward;
  });
  std::int32_t begin = 0, end = -1;  // of the part that is being built: [begin, end]
  const auto alone = [&](std::int32_t from, std::int32_t to) {
    return std::all_of(whole.need.begin() + from, whole.need.begin() + to,
                       [](std::int64_t n) { return n <= 0; });
  };
  const auto finish = [&] {
    if (parts.empty()) return;
    auto& p = parts.back().problem;
    p.need.assign(whole.need.begin() + begin, whole.need.begin() + end + 1);
    for (auto& u : p.units) {
      u.first -= begin, u.last -= begin, u.forward -= begin, u.rerun -= begin;
    }
  };
  std::int32_t covered = 0;
  for (const auto i : order) {
    const auto& u = whole.units[i];
    if (u.forward > end) {
      finish();
      if (!alone(covered, u.forward)) return false;
      parts.emplace_back();
      begin = u.forward;
    }
    parts.back().problem.units.push_back(u);
    parts.back().units.push_back(i);
    end = std::max(end, u.rerun);
    covered = end + 1;
  }
  finish();
  return alone(covered, static_cast<std::int32_t>(whole.need.size()));
}

bool solve(const Problem& whole, const Options& options, Levels& levels) {
  if (options.same_in_microbatches) return solve_same(whole, levels);
  if (options.pipeline) return solve_pipeline(whole, options.pipeline->stage, levels);
  std::vector<Part> parts;
  if (!split(whole, parts)) return false;
  levels.assign(whole.units.size(), 0);
  for (const auto& part : parts) {
    Levels found;
    if (!(nested(part.problem) ? solve_nested(part.problem, found)
                               : solve_any(part.problem, found))) {
      return false;
    }
    longest_lived_first(part.problem, found);
    for (std::size_t k = 0; k < found.size(); ++k) levels[part.units[k]] = found[k];
  }
  return true;
}

}  // namespace

Choice choose(const Model& model, std::int64_t budget, const Options& options) {
  Choice choice;
  Levels levels;
  const bool found = solve(Problem::of(model, budget), options, levels);
  if (found) {
    for (const auto l : levels) choice.decisions.push_back(static_cast<Level>(l));
  } else {
    choice.decisions = model.deepest();
  }
  choice.prediction = model.predict(choice.decisions);
  choice.fits = choice.prediction.peak <= budget;
  return choice;
}

std::int64_t least_budget(const Model& model, const Options& options) {
  auto high = model.predict(model.deepest()).peak;
  if (!choose(model, high, options).fits) high = model.predict(model.kept()).peak;
  // Mostly nothing below the deepest decisions' peak fits, and one look shows it.
  if (high > 0 && !choose(model, high - 1, options).fits) return high;
  std::int64_t low = 0;
  while (low < high) {
    const auto middle = low + (high - low) / 2;
    if (choose(model, middle, options).fits) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return high;
}

}  // namespace recoup::budget
