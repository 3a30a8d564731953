// What a step will need under other decisions than those it was measured with. The formula and its
// limits are in hooks/budget/README.md.
#pragma once

#include <cstdint>
#include <vector>

#include "recoup/budget/timeline.h"
#include "recoup/result.h"

namespace recoup::budget {

// A level for each of a timeline's units.
using Decisions = std::vector<Level>;

// What one unit does at each level, in bytes.
struct UnitModel {
  PerLevel dropped;  // less held from its forward's end to its backward's begin than kept
  PerLevel forward;  // the most in its own forward, over what was allocated when it began
  PerLevel rerun;    // the most in its own rerun, over what was allocated at its backward's begin
  PerLevel cost_ns;  // units alike in bytes share the median of what was measured
};

struct Prediction {
  std::vector<std::int64_t> bytes, peaks;  // at each event, as in Event
  std::int64_t peak = 0;
  std::size_t holder = 0;    // the event with the peak
  std::int64_t cost_ns = 0;  // all reruns of the step
};

class Model {
 public:
  // From one measured step. It is exact where every unit was at kFull; a kept unit gives upper
  // bounds for the reruns it did not do.
  static Result<Model> from(Timeline timeline);

  const Timeline& timeline() const { return timeline_; }
  const std::vector<UnitModel>& units() const { return units_; }

  // Precondition: a level that the unit may have, for each unit.
  Prediction predict(const Decisions& decisions) const;

  // The decisions of the measured step, none recomputed, and all at the deepest level they may
  // have.
  Decisions measured() const;
  Decisions kept() const { return Decisions(units_.size(), Level::kKept); }
  Decisions deepest() const;

 private:
  Timeline timeline_;
  std::vector<UnitModel> units_;
};

}  // namespace recoup::budget
