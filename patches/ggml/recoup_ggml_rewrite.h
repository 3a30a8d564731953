// The graph half of recoup_ggml.h: which tensors are dropped is the caller's decision.
#pragma once

#include <cstddef>
#include <unordered_set>

#include "ggml.h"

namespace recoup_ggml {

// Whether to drop a tensor of the forward can save its memory: it is computed, nobody wants it as
// an output of the graph, and it has no memory yet.
bool droppable(const ggml_tensor* t);

// Makes the backward of `graph` (its nodes from n_forward on) read clones of the `dropped` forward
// tensors, which run just before they are needed; sources of clones that are dropped, too, are
// cloned as well. Returns the number of clones, or -1 with a sentence in `error` and the graph as
// it was.
int rewrite(ggml_context* ctx, ggml_cgraph* graph, int n_forward,
            std::unordered_set<const ggml_tensor*> dropped, char* error, size_t error_size);

}  // namespace recoup_ggml
