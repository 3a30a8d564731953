// A pipeline stage's training step as a timeline in closed form, for the budget's core to choose
// on: so a plan made ahead and a budget kept at run time cannot disagree in kind.
#pragma once

#include <cstdint>
#include <vector>

#include "recoup/budget/choose.h"
#include "recoup/models/memory.h"
#include "recoup/models/model.h"
#include "recoup/modules.h"

namespace recoup::models {

// What may be recomputed: bits of recoup_module, RECOUP_MLP_ACTIVATION among them.
using Recomputable = std::uint32_t;

struct Stage {
  std::int64_t number = 0, first_layer = 0, layers = 0;  // layers from first_layer (1-indexed) on
  std::int64_t parameters = 0;                           // that this rank holds
  // Bytes that stand for the whole step, in `at_rest` and in the timeline: weights, gradients that
  // are kept over the step, optimizer state.
  std::int64_t weights = 0, gradients = 0, optimizer = 0;
  std::int64_t at_rest = 0;
  // Of one microbatch with nothing recomputed: all layers' saved tensors; the head's.
  std::int64_t activations = 0, logits = 0;
  double in_flight = 0;
  double step_ns = 0;  // arithmetic of one step on this rank, forward and backward, without reruns
  budget::Timeline timeline;
};

// The stage numbered from 0. Precondition: check(). An error where it is larger than any device
// (512 TiB).
Result<Stage> stage_of(const Described& described, std::int64_t number, Recomputable which);

// The level of each unit with the MLPs (and experts, where `which` had them) of the stage's first n
// layers at the deepest level they may have, in all microbatches, and nothing else recomputed.
budget::Decisions first_layers(const Stage& stage, const budget::Model& model, std::int64_t n);

}  // namespace recoup::models
