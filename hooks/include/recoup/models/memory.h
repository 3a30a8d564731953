// What a layer of a known model saves for backward, as a list of tensors from the tables in
// hooks/models/tables.h, and what else a rank holds.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "recoup/models/model.h"

namespace recoup::models {

// Which recompute frees a tensor: of which module, and for the MLP from which level on.
enum class Frees {
  kNothing,
  kCoreAttn,
  kLayernorm,
  kMlaUpProj,
  kMlpFull,        // mlp, level full
  kMlpActivation,  // mlp, both levels
  kMoe,            // moe
  kMoeAct,         // moe and moe_act
  kSharedExperts,  // moe and shared_experts
  kCount
};
inline constexpr std::size_t kFrees = static_cast<std::size_t>(Frees::kCount);

struct SavedTensor {
  std::string what;
  std::string part;  // attention, mlp, norm, moe, shared
  double elements;   // on this rank, for one microbatch
  double size;       // bytes an element
  Frees frees;
  bool once;  // one for all layers of a rank (rotary tables, a causal mask)
  double bytes() const { return elements * size; }
};

// What one layer saves on one rank for one microbatch. `layer` counts from 0 and may be one of the
// layers for multi-token prediction, which follow the others.
std::vector<SavedTensor> saved_by(const Model& model, const Parallel& parallel, std::size_t layer);

// Their bytes, by what frees them.
struct LayerBytes {
  std::array<double, kFrees> by{};
  double once = 0;   // tensors that layers share, counted apart
  double input = 0;  // the layer's input or output: one hidden state
  double mlp_input = 0;

  double total() const;
  double of(Frees frees) const { return by[static_cast<std::size_t>(frees)]; }
  // Freed by recomputing the MLP of a dense layer at a level, or a module of an MoE layer.
  double mlp_full() const { return of(Frees::kMlpFull) + of(Frees::kMlpActivation); }
  double moe() const { return of(Frees::kMoe) + of(Frees::kMoeAct) + of(Frees::kSharedExperts); }
};
LayerBytes layer_bytes(const Model& model, const Parallel& parallel, std::size_t layer);

// What forward saves after the last layer (final norm, logits, loss), and what backward adds there.
struct HeadBytes {
  double saved = 0, logits = 0;  // from forward on
  double backward = 0;           // more, when the loss's backward runs
  double freed = 0;              // of the first two, right after it
  double held = 0;               // of the first two, until backward ends: the caller's logits
};
HeadBytes head_bytes(const Model& model, const Parallel& parallel);

// Weights of a layer, in numbers: all that one rank holds under tensor and expert parallelism.
struct Parameters {
  double dense = 0, experts = 0;
  double sum() const { return dense + experts; }
};
Parameters layer_parameters(const Model& model, const Parallel& parallel, std::size_t layer);
double embedding_parameters(const Model& model, const Parallel& parallel);
double head_parameters(const Model& model, const Parallel& parallel);
// The whole model's, over all ranks.
double all_parameters(const Model& model);

// Nanoseconds on one rank for one microbatch.
struct LayerTimes {
  std::array<double, kFrees> rerun{};  // to bring back what is in LayerBytes::by
  double forward = 0;
};
LayerTimes layer_times(const Model& model, const Parallel& parallel, std::size_t layer);

}  // namespace recoup::models
