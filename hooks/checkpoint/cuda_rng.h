// A CUDA generator while its stream is being captured into a graph.
//
// get_state() and set_state() are refused then: what a captured kernel reads is a seed and an
// offset in device memory, filled in at each replay, plus an offset within the graph, counted on
// the host during capture. To draw the same numbers twice in one graph, a recompute must draw with
// the forward's offset within the graph and the same two device cells; that is what a saved state
// has.
//
// Run here on a fake of the generator's calls (tests/device/cuda_rng_test.cc), never on a GPU.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace recoup::cuda_rng {

// Where a generator stands in a graph under capture. It does not name the capture: the backward may
// be captured into a graph of its own.
struct Captured {
  at::Tensor seed, offset;              // int64 [1] on the generator's device
  std::uint64_t offset_intragraph = 0;  // counted from the start of the graph
  bool defined() const { return seed.defined(); }
};

// Whether `generator` is a CUDA one whose device's current stream is under capture. False where
// LibTorch was built without CUDA.
bool capturing(const at::Generator& generator);

// The state to restore later during this capture or another. Preconditions of all three: capturing,
// and the generator's mutex held. drawn_since() is asked during the capture of save().
Captured save(const at::Generator& generator);
bool drawn_since(const at::Generator& generator, const Captured& saved);
void restore(const at::Generator& generator, const Captured& saved);

}  // namespace recoup::cuda_rng
