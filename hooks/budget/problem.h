// The choice as arithmetic: each stretch of the step between two changes is one constraint.
//
// need[e] is by how much constraint e is above the budget with every unit kept. A unit that is
// alive over e takes dropped[level] off it. Its own forward and its own rerun are constraints too,
// which it is not alive over; there its level stands as a term of its own. A constraint holds where
// the rest is <= 0.
#pragma once

#include <cstdint>
#include <vector>

#include "recoup/budget/model.h"

namespace recoup::budget {

struct Problem {
  struct Unit {
    PerLevel dropped, cost;
    std::array<bool, kLevels> may;
    std::int32_t first, last;     // alive over the constraints [first, last)
    std::int32_t forward, rerun;  // its own constraints
    PerLevel forward_term, rerun_term;
    std::int64_t microbatch;
    std::int64_t kind;  // the same for a layer's part in all microbatches
  };
  std::vector<Unit> units;
  std::vector<std::int64_t> need;

  // Constraints are in the order of time, so that each unit is alive over one range of them.
  static Problem of(const Model& model, std::int64_t budget);
};

using Levels = std::vector<std::uint8_t>;  // for each unit of a problem

// Levels under which a problem's constraints are kept up to date.
class Trial {
 public:
  // Everything kept.
  explicit Trial(const Problem& problem);

  void set(std::size_t unit, std::uint8_t level);
  // By how much less in all the constraints would be violated with `unit` at `level`.
  std::int64_t gain(std::size_t unit, std::uint8_t level) const;
  // Whether `unit` at `level` violates nothing that holds now.
  bool keeps_feasible(std::size_t unit, std::uint8_t level) const;

  bool feasible() const { return violation_ == 0; }
  std::int64_t violation() const { return violation_; }
  std::int64_t cost() const { return cost_; }
  const Levels& levels() const { return levels_; }
  // Elements of constraints looked at so far: a measure of work that is the same on every machine.
  std::int64_t work() const { return work_; }

 private:
  void add(std::int32_t constraint, std::int64_t amount);

  const Problem* problem_;
  Levels levels_;
  std::vector<std::int64_t> rest_;
  std::int64_t violation_ = 0, cost_ = 0;
  mutable std::int64_t work_ = 0;
};

// The levels of least cost where the units' lives nest, or nothing where none fits. Exact up to
// kMostStates different sums of dropped bytes; above, sums are binned. Precondition:
// nested(problem).
bool nested(const Problem& problem);
bool solve_nested(const Problem& problem, Levels& levels);

// Levels of low cost for any problem, or nothing where none was found.
bool solve_any(const Problem& problem, Levels& levels);

// The same with a layer's part at the same level in all microbatches.
bool solve_same(const Problem& problem, Levels& levels);

// Where microbatches must be alike but for one unit, see choose.h.
bool solve_pipeline(const Problem& problem, std::int64_t stage, Levels& levels);

// Among units that are alike and of one microbatch, moves the deepest levels to those that live
// longest, where that stays feasible: "the first N" where N layers are alike.
void longest_lived_first(const Problem& problem, Levels& levels);

}  // namespace recoup::budget
