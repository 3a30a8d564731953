#include "rest_part.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "libtorch_framework.h"

namespace recoup {
namespace {

const c10::StorageImpl* storage_of(const at::Tensor& t) {
  if (!t.defined() || !t.has_storage() || t.unsafeGetTensorImpl()->is_python_dispatch() ||
      t.layout() != at::kStrided || t.is_nested()) {
    return nullptr;
  }
  return t.storage().unsafeGetStorageImpl();
}

}  // namespace

at::Tensor view_at(const at::Tensor& data, const Geometry& place) {
  if (data.sizes() == at::IntArrayRef(place.sizes) &&
      data.strides() == at::IntArrayRef(place.strides) && data.storage_offset() == place.offset) {
    return data;
  }
  const at::AutoDispatchBelowADInplaceOrView no_history;
  return data.as_strided(place.sizes, place.strides, place.offset);
}

Tensors RestPart::run(const Tensors& first_outputs) {
  first_slot_ = region_.size();
  for (const auto& t : first_outputs) {
    Output output{storage_of(t), {}, {}};
    if (output.storage != nullptr) {
      output.version.emplace(t);
      output.shape.emplace(t);
      output.dtype = t.scalar_type();
      output.offset = t.storage_offset();
    }
    outputs_.push_back(std::move(output));
  }
  const struct Running {
    bool& flag;
    explicit Running(bool& f) : flag(f) { flag = true; }
    ~Running() { flag = false; }
  } running(running_);
  return rest_(first_outputs);
}

void RestPart::recorded(std::size_t slot, const at::Tensor& t) {
  if (region_.is_kept(slot)) return;
  const auto* storage = storage_of(t);
  for (std::size_t i = 0; storage != nullptr && i < outputs_.size(); ++i) {
    if (outputs_[i].storage == storage && outputs_[i].version->is_current() &&
        outputs_[i].dtype == t.scalar_type()) {
      views_.push_back({slot, i, Geometry(t)});
      return;
    }
  }
  const bool from_outside = storage != nullptr && !t.requires_grad();
  unknown_.push_back({slot, Shape(t).text(), from_outside ? t.tensor_data() : at::Tensor()});
}

bool RestPart::decide(const Tensors& outputs, const std::string& name) {
  const auto unknown = std::exchange(unknown_, {});
  for (const auto& saved : unknown) {
    // Not held by autograd, which has our hooks in its place. Who else holds it has it from
    // outside, unless it is an output.
    const auto* storage = storage_of(saved.data);
    const auto mine = std::count_if(unknown.begin(), unknown.end(), [&](const auto& other) {
      return storage_of(other.data) == storage;
    });
    const bool is_output = std::any_of(outputs.begin(), outputs.end(),
                                       [&](const auto& out) { return storage_of(out) == storage; });
    if (storage == nullptr || is_output ||
        static_cast<std::ptrdiff_t>(saved.data.storage().use_count()) <= mine) {
      TORCH_WARN_ONCE("recoup: ", name, ": what follows the part to be recomputed saves a ",
                      saved.shape,
                      " of its own (a dropout's mask? autocast's copy of a weight?), "
                      "so it is recomputed with it, up to the last tensor that is needed: right, "
                      "but slower than it could be");
      return false;
    }
  }
  for (const auto& saved : unknown) region_.keep(saved.slot, region_.framework().hold(saved.data));
  region_.rest_from(first_slot_);
  return first_part_is_enough_ = true;
}

void RestPart::refill(const Tensors& first_outputs) const {
  const at::NoGradGuard no_grad;
  for (const auto& view : views_) {
    const auto& then = outputs_[view.output];
    if (view.output >= first_outputs.size() || !first_outputs[view.output].defined()) return;
    const auto& now = first_outputs[view.output];
    if (Shape(now) != *then.shape) return;  // Recompute says so: the slot stays empty
    auto place = view.geometry;
    place.offset += now.storage_offset() - then.offset;
    region_.fill(view.slot, view_at(now.tensor_data(), place));
  }
}

}  // namespace recoup
