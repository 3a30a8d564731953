// Asks recoup what each layer recomputes, and does it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "recoup/host.hpp"

namespace infini_train {
class Tensor;
namespace nn {
class Module;
class ModuleList;
class TransformerLayer;
} // namespace nn
} // namespace infini_train

namespace infini_train::nn {

using RecoupTensors = std::vector<std::shared_ptr<Tensor>>;
using RecoupForward = std::function<RecoupTensors(const RecoupTensors &)>;

// Asks recoup about a layer that is complete and keeps the decision in the layer, its MLP and its attention.
// `layer_number` is 1-indexed and global; `stage_offset` layers come before the layer's pipeline chunk, which
// has `stage_num_layers` of the model's `num_layers`. The options come from the flags or recoup's file; without
// any nothing is recomputed. Bad options end the program.
void RecoupSetUp(TransformerLayer *layer, int64_t layer_number, int64_t stage_offset, int64_t stage_num_layers,
                 int64_t num_layers);

// The inputs stay, and what forward(inputs) would have saved for backward is computed again there. Inputs may
// be null.
RecoupTensors RecoupCheckpoint(const recoup::Layer &layer, const char *part, const RecoupForward &forward,
                               const RecoupTensors &inputs);

// mlp(x), checkpointed where recoup decided so.
RecoupTensors RecoupMlp(const recoup::Layer &layer, const std::shared_ptr<Module> &mlp, const RecoupTensors &x);

// Runs layers [begin, end) one after the other, the first input being what each gives to the next; groups of
// them in one checkpoint each where recoup decided so (granularity full).
RecoupTensors RecoupLayers(const std::shared_ptr<ModuleList> &layers, RecoupTensors inputs, size_t begin = 0,
                           size_t end = SIZE_MAX);

} // namespace infini_train::nn
