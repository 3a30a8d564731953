// What happens to a checkpoint's regions, for those who measure: profiles, traces, the memory
// budget. A listener is given with CheckpointOptions and hears of that region only, so that two
// models in a process do not hear each other. Where there is none, each of these moments costs the
// engine one load.
//
//   forward_begins, saved..., forward_ends       in the forward's thread
//   backward_begins                              the first unpack of a backward, before a recompute
//                                                has allocated anything
//   recompute_begins, recompute_ends             not for a region that is kept
//   released                                     autograd has dropped the last saved tensor, or
//                                                there was none; also where no backward ever ran
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace recoup {

// One run of a region. The identity is what the caller of checkpoint() said in its options.
struct RegionInfo {
  std::string name;               // such as "layer 3 mlp"; for people, not to be parsed
  std::int64_t layer_number = 0;  // 1-indexed and global; 0: not a layer's
  std::uint32_t module = 0;       // a bit of recoup/modules.h; 0: none of them
  std::int64_t microbatch = 0;    // the caller's own number for this run
  std::uint64_t run = 0;          // differs between all runs of all regions in a process; never 0
  // From forward_ends on: bytes of saved tensors that a recomputed region keeps because they are
  // small, or because the options ask for it; of a kept region, those that are small. The inputs
  // are not counted.
  std::int64_t kept_bytes = 0;
  bool recomputed = true;  // false: what autograd saves is kept, as in a plain run
  std::string part;        // of the layer, such as "mlp" or "mlp.rest"; empty: unknown
};

// The functions are called from the threads of forwards and backwards, several at a time, in the
// middle of their work: they must not throw, should return soon, and must not run operators that
// record gradients. Tensors are valid during the call only.
class EventListener {
 public:
  virtual ~EventListener() = default;
  virtual void forward_begins(const RegionInfo&, const std::vector<at::Tensor>& inputs) noexcept {}
  // Autograd saves `tensor`: one that a recomputed region drops, a kept one keeps. The same tensor
  // (and the same storage) may be saved several times; inputs and parameters are among them.
  virtual void saved(const RegionInfo&, const at::Tensor& tensor) noexcept {}
  // Also where the forward throws.
  virtual void forward_ends(const RegionInfo&) noexcept {}
  virtual void backward_begins(const RegionInfo&) noexcept {}
  virtual void recompute_begins(const RegionInfo&) noexcept {}
  // Also where it ends early, which is usual, and where it fails.
  virtual void recompute_ends(const RegionInfo&) noexcept {}
  virtual void released(const RegionInfo&) noexcept {}
};

// A listener that passes everything on to all of `listeners` in turn; null where there is none, the
// listener itself where there is one. Null entries are left out.
std::shared_ptr<EventListener> all_listeners(std::vector<std::shared_ptr<EventListener>> listeners);

}  // namespace recoup
