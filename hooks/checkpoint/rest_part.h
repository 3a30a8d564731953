// The part of a forward that is never run again: rest(recomputed(inputs)).
//
// What the rest saves is refilled without running it, so that the recompute of the first part ends
// by returning. That needs each tensor that it saves to be one of:
//   - an output of the first part, or a view of one, unmodified: found again by output, size,
//   stride
//     and offset
//   - a parameter or a view of one: kept, at no cost
//   - what is kept anyway, because it is small or because the options ask for it
//   - something that lives outside (a frozen weight, a buffer): kept, at no cost
// Where another is saved (a dropout's mask, autocast's copy of a weight), the region runs as one
// part with early stop, and that is said once a process.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "recoup/checkpoint/checkpoint.h"
#include "tensor_facts.h"

namespace recoup {

class Region;

// The view of `data`, which has no history, that lies there; `data` itself where it is all of it.
at::Tensor view_at(const at::Tensor& data, const Geometry& place);

class RestPart {
 public:
  RestPart(Region& region, Forward rest) : region_(region), rest_(std::move(rest)) {}

  bool running() const { return running_; }
  const Forward& forward() const { return rest_; }
  // Forward: runs the rest on what the first part gave.
  Tensors run(const Tensors& first_outputs);
  // Forward: a tensor that the rest saves has got a slot; it is kept or not.
  void recorded(std::size_t slot, const at::Tensor& t);
  // Forward: whether only the first part need be run again. `outputs` are the rest's.
  bool decide(const Tensors& outputs, const std::string& name);
  // Recompute: fills the rest's slots from what the first part gave again.
  void refill(const Tensors& first_outputs) const;
  bool first_part_is_enough() const { return first_part_is_enough_; }

 private:
  struct Output {
    const c10::StorageImpl* storage;  // null: nothing can be a view of it
    std::optional<Version> version;
    std::optional<Shape> shape;
    at::ScalarType dtype = at::kFloat;
    std::int64_t offset = 0;
  };
  struct View {
    std::size_t slot, output;
    Geometry geometry;
  };
  Region& region_;
  Forward rest_;
  bool running_ = false, first_part_is_enough_ = false;
  std::size_t first_slot_ = 0;
  std::vector<Output> outputs_;
  std::vector<View> views_;
  struct Unknown {
    std::size_t slot;
    std::string shape;
    at::Tensor data;  // undefined: it cannot be from outside
  };
  std::vector<Unknown> unknown_;  // until decide()
};

}  // namespace recoup
