// What is remembered of a tensor whose data is not kept.
#pragma once

#include <c10/util/DimVector.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "torch_private.h"

namespace recoup {

// A version counter as it was: in-place operations on the tensor or any view of it advance it.
class Version {
 public:
  explicit Version(const at::Tensor& t)
      : counter_(torch_private::version_counter(t)), noted_(counter_.current_version()) {}

  bool is_current() const { return counter_.current_version() == noted_; }
  // Why the data is no longer what it was, or empty.
  std::string changed() const;
  // From here on what it is now counts: a recompute itself has refilled the tensor.
  void refresh() { noted_ = counter_.current_version(); }

 private:
  c10::VariableVersion counter_;
  std::uint32_t noted_;
};

// What a recomputed tensor must have in common with the forward's.
class Shape {
 public:
  explicit Shape(const at::Tensor& t);
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }
  // "Float[4, 8] on cpu"; a size that is not a number (of a nested tensor) is "*".
  std::string text() const;

 private:
  c10::DimVector sizes_;  // -1: not a number, not compared
  at::ScalarType dtype_;
  at::Device device_;
};

// Where a view lies in a tensor.
struct Geometry {
  explicit Geometry(const at::Tensor& t)
      : sizes(t.sizes()), strides(t.strides()), offset(t.storage_offset()) {}
  c10::DimVector sizes, strides;
  std::int64_t offset;  // in elements, from the start of the storage
};

// What a forward reads though autograd saves nothing of it: a bias, a buffer. Only the versions are
// kept.
class Unsaved {
 public:
  // After a forward whose nodes are numbered from `first_node` on: the leaves that those nodes
  // accumulate into, and `others`. `inputs` are left out: they are checked anyway. Each of the
  // nodes is shown to `see`, where that is not null.
  void note(const std::vector<at::Tensor>& outputs, std::uint64_t first_node,
            const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& others,
            const std::function<void(torch_private::Node&)>& see);
  // Throws where one was modified in place since.
  void check(const std::string& region) const;
  // After a recompute, in which the forward itself may have modified them.
  void refresh();

 private:
  struct Noted {
    Version version;
    Shape shape;
  };
  std::vector<Noted> noted_;
};

// A parameter, or an input that requires grad: of `t` itself or of the tensor that it is a view of.
// Undefined where it is neither.
at::Tensor leaf_of(const at::Tensor& t);

}  // namespace recoup
