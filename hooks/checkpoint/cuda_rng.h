// A CUDA generator while its stream is being captured into a graph.
//
// get_state() and set_state() are refused then: what a captured kernel reads is a seed and an
// offset in device memory, filled in at each replay, plus an offset within the graph, counted on
// the host during capture. To draw the same numbers twice in one graph, a recompute must draw with
// the forward's offset within the graph and the same two device cells; that is what a saved state
// has.
//
// Compiled and linked here, not run: this project has no GPU (see the README).
#pragma once

#include <ATen/core/Generator.h>

namespace recoup::cuda_rng {

// Whether `generator` is a CUDA one whose device's current stream is under capture. False where
// LibTorch was built without CUDA.
bool capturing(const at::Generator& generator);

// The state to restore later during the same capture. Preconditions of all three: capturing, and
// the generator's mutex held.
at::Generator save(const at::Generator& generator);
bool drawn_since(const at::Generator& generator, const at::Generator& saved);
void restore(const at::Generator& generator, const at::Generator& saved);

}  // namespace recoup::cuda_rng
