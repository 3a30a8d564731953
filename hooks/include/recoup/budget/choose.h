// The decisions of least recompute time whose predicted peak is within a budget.
#pragma once

#include <cstdint>
#include <optional>

#include "recoup/budget/model.h"

namespace recoup::budget {

// For a rank of a pipeline: the step is not the sum of what its stages recompute, so that each
// microbatch recomputes as much as every other, give or take one unit, and the microbatches that do
// one more are not the same on each stage.
struct Pipeline {
  std::int64_t stage = 0;
};

struct Options {
  std::optional<Pipeline> pipeline;
  // A layer's part is at the same level in every microbatch: what a configuration file can say.
  // Wins over `pipeline`.
  bool same_in_microbatches = false;
};

struct Choice {
  bool fits = false;  // else: the deepest decisions, whose peak is above the budget all the same
  Decisions decisions;
  Prediction prediction;
};

// Deterministic: the same model and budget give the same decisions on every machine. Exact where
// the units' lives nest (one microbatch at a time); close to it elsewhere.
Choice choose(const Model& model, std::int64_t budget, const Options& options = {});

// The least budget for which a choice fits, by search; `choose` with it fits.
std::int64_t least_budget(const Model& model, const Options& options = {});

}  // namespace recoup::budget
