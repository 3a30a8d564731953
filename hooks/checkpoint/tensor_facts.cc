#include "tensor_facts.h"

#include <algorithm>
#include <limits>
#include <sstream>

#include "recoup/checkpoint/recompute.h"

namespace recoup {

std::string Version::changed() const {
  if (is_current()) return {};
  return "was modified by an in-place operation after it was saved: it is at version " +
         std::to_string(counter_.current_version()) + ", expected version " +
         std::to_string(noted_) + "; modify a clone instead, or modify it after backward";
}

Shape::Shape(const at::Tensor& t) : dtype_(t.scalar_type()), device_(t.device()) {
  if (t.is_nested() && t.layout() == at::kStrided) {
    sizes_.assign(t.dim(), -1);  // each of its tensors has its own
    return;
  }
  if (!t.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    const auto sizes = t.sizes();
    sizes_.assign(sizes.begin(), sizes.end());
    return;
  }
  for (const auto& size : t.sym_sizes()) {  // of a jagged tensor, say
    sizes_.push_back(size.maybe_as_int().value_or(-1));
  }
}

bool Shape::operator==(const Shape& other) const {
  if (dtype_ != other.dtype_ || device_ != other.device_ || sizes_.size() != other.sizes_.size()) {
    return false;
  }
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    if (sizes_[i] != other.sizes_[i] && sizes_[i] >= 0 && other.sizes_[i] >= 0) return false;
  }
  return true;
}

std::string Shape::text() const {
  std::ostringstream text;
  text << dtype_ << "[";
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    text << (i > 0 ? ", " : "");
    sizes_[i] < 0 ? text << "*" : text << sizes_[i];
  }
  text << "] on " << device_;
  return text.str();
}

void Unsaved::note(const std::vector<at::Tensor>& outputs, std::uint64_t first_node,
                   const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& others,
                   const std::function<void(torch_private::Node&)>& see) {
  using torch_private::Node;
  // Leaves are numbered last of all; what comes before the region has lower numbers, or is an
  // input's (a thread numbers its own nodes only).
  constexpr auto kLeaf = std::numeric_limits<std::uint64_t>::max();
  const auto is_input = [&](const auto* thing, auto of) {
    return std::any_of(inputs.begin(), inputs.end(),
                       [&](const at::Tensor& t) { return t.defined() && of(t) == thing; });
  };
  std::vector<bool> seen;
  c10::SmallVector<Node*, 16> todo;
  const auto visit = [&](Node* node) {
    if (node == nullptr) return;
    const auto number = node->sequence_nr();
    if (number == kLeaf) {
      const auto* accumulate = dynamic_cast<const torch_private::AccumulateGrad*>(node);
      if (accumulate == nullptr) return;
      const at::Tensor& leaf = accumulate->variable;
      if (is_input(leaf.unsafeGetTensorImpl(),
                   [](const at::Tensor& t) { return t.unsafeGetTensorImpl(); })) {
        return;
      }
      if (noted_.empty()) noted_.reserve(4);  // an MLP's
      noted_.push_back({Version(leaf), Shape(leaf)});
      return;
    }
    if (number < first_node) return;
    const auto index = number - first_node;
    if (index < seen.size() && seen[index]) return;
    if (is_input(node, [](const at::Tensor& t) { return t.grad_fn().get(); })) return;
    if (index >= torch_private::next_node_number() - first_node) return;  // another thread's
    if (index >= seen.size()) seen.resize(torch_private::next_node_number() - first_node);
    seen[index] = true;
    todo.push_back(node);
  };
  for (const auto& out : outputs) {
    if (out.defined() && out.requires_grad() && !out.is_leaf()) visit(out.grad_fn().get());
  }
  while (!todo.empty()) {
    Node* node = todo.pop_back_val();
    if (see) see(*node);
    for (const auto& edge : node->next_edges()) visit(edge.function.get());
  }
  for (const auto& t : others) {
    if (t.defined()) noted_.push_back({Version(t), Shape(t)});
  }
}

void Unsaved::check(const std::string& region) const {
  for (const auto& noted : noted_) {
    if (noted.version.is_current()) continue;
    throw RecomputeError("recoup: " + region + ": a tensor that the forward reads (" +
                         noted.shape.text() + ") " + noted.version.changed() +
                         " (step the optimizer when every backward that recomputes is done)");
  }
}

void Unsaved::refresh() {
  for (auto& noted : noted_) noted.version.refresh();
}

at::Tensor leaf_of(const at::Tensor& t) {
  const at::Tensor base = t.is_view() ? at::Tensor(t._base()) : t;
  return base.is_leaf() && base.requires_grad() ? base : at::Tensor();
}

}  // namespace recoup
