// Asks recoup which layers recompute their MLP, and does it.
#pragma once

#include <memory>
#include <vector>

#include "recoup/host.hpp"

namespace infini_train {
class Tensor;
namespace nn {
class Module;
} // namespace nn
} // namespace infini_train

namespace infini_train::nn {

// recoup's decision for a layer: `layer_number` is 1-indexed and global, `stage_offset` counts the
// layers before the layer's pipeline chunk, `num_layers` those of the whole model. The options come
// from the flags --recompute_* and --recoup_config; without any nothing is recomputed.
recoup::Layer RecoupLayer(int64_t layer_number, int64_t stage_offset, int64_t num_layers);

// mlp(x), checkpointed where recoup decided so.
std::vector<std::shared_ptr<Tensor>> RecoupMlp(const recoup::Layer &layer, const std::shared_ptr<Module> &mlp,
                                               const std::vector<std::shared_ptr<Tensor>> &x);

} // namespace infini_train::nn
