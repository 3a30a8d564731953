// A layer as its step needs it: what is allocated when, in bytes on one rank for one microbatch.
#pragma once

#include <vector>

#include "recoup/models/step.h"

namespace recoup::models {

// Something that may be recomputed.
struct Unit {
  const char* part;
  double freed = 0;  // at kFull
  double kept = 0;   // of that, what kActivation keeps; 0: no such level
  double output = 0;
  double full_ns = 0, activation_ns = 0;
  bool may_full = true, may_activation = false;
};

// A layer as its step needs it, in bytes.
struct LayerPlan {
  double other = 0, mlp_other = 0;  // saved and not freed by any unit: attention's side, the MLP's
  std::vector<Unit> before, mlp;    // units of attention's side, and of the MLP's (at most one)
  double output = 0;                // the hidden state
  // What else is allocated for a moment: while attention runs; in its backward; in the MLP's
  // backward first for the gradient of fc2's input, then for that of fc1's result.
  double attention_forward = 0, attention_backward = 0, mlp_backward = 0;
  double qkv_gradients = 0, out_gradients = 0, fc1_gradients = 0, fc2_gradients = 0;  // of weights
  double qkv_backward = 0;  // the gradient of query, key and value together
  double gathered = 0;      // ZeRO 3: the layer's weights while it runs
  double forward_ns = 0;

  // The time that all its units take to run again.
  double most_rerun_ns() const;
};

// `which` may be recomputed; what else the layer saves is `other` and `mlp_other`.
LayerPlan plan_of(const Described& described, std::size_t number, Recomputable which);

}  // namespace recoup::models
