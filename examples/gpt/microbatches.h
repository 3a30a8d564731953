// The forwards and backwards of one optimizer step: one after another, or over pipeline stages.
#pragma once

#include <functional>

#include "model.h"

namespace gpt {

struct Microbatches {
  std::int64_t count = 1;
  std::function<void(std::int64_t)> begins = [](std::int64_t) {};  // a forward, from 0
  std::function<void()> after_forward = [] {};
};

// Runs `windows` [batch, context + 1] of kLong in equal parts through the model, in the order 1F1B:
// a stage begins as many forwards as there are stages after it, then one forward and one backward
// in turn. Gradients are those of the mean loss. Returns the mean loss on the last stage, 0 on the
// others.
at::Tensor train(Model& model, const Config& config, const World& world, const at::Tensor& windows,
                 const Microbatches& microbatches);

}  // namespace gpt
