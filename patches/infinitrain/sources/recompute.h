// Activation checkpointing for InfiniTrain's autograd, by recoup: recoup/checkpoint/recompute.h on FunctionCtx's
// saved-tensor hooks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace infini_train {
class Tensor;
}

namespace infini_train::autograd::recompute {

using Tensors = std::vector<std::shared_ptr<Tensor>>;

// Runs forward(inputs), keeping only the inputs until backward, which runs forward again up to the
// last tensor it needs: the function that only saves its inputs last (an MLP's second projection) does
// not run again. forward must compute the same thing each time, and not modify its inputs.
Tensors Checkpoint(std::function<Tensors(const Tensors &)> forward, const Tensors &inputs, const std::string &name);

// Called by Function::Apply with the inputs that a forward is about to compute with. During a recompute
// that needs no more than these, it takes them and ends the recompute.
void BeforeForward(const Tensors &inputs);

// Whether this thread is in a recompute: functions save their tensors then, but build no graph.
bool IsRecomputing();

} // namespace infini_train::autograd::recompute
