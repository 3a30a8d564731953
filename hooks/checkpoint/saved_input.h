// An input of a region: what is kept in place of all that autograd would have saved.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "tensor_facts.h"

namespace recoup {

// A tensor kept from forward to backward.
class SavedInput {
 public:
  explicit SavedInput(const at::Tensor& t);
  // Throws where it was modified since.
  void check(const std::string& region, std::size_t index) const;
  // The tensor's data.
  at::Tensor data();
  // Whether that is kept here, and not by hooks around the region.
  bool is_kept_here() const { return data_.defined(); }

  // Whether this thread is handing an input to the hooks around the region. No operation is under
  // way then: a recompute around it may end there.
  static bool packing();

 private:
  std::optional<Version> version_;
  std::unique_ptr<torch_private::SavedVariableHooks> hooks_;
  at::Tensor data_;
};

}  // namespace recoup
