#include "saved_input.h"

#include <c10/core/GradMode.h>

#include "recoup/checkpoint/recompute.h"
#include "saved_tensors.h"

namespace recoup {
namespace {

thread_local bool packing_input = false;

struct Packing {
  const bool before = std::exchange(packing_input, true);
  ~Packing() { packing_input = before; }
};

}  // namespace

bool SavedInput::packing() { return packing_input; }

SavedInput::SavedInput(const at::Tensor& t) {
  if (!t.defined()) return;
  version_.emplace(t);
  // Within another region (or Python hooks) the input is that region's to drop and recompute.
  hooks_ = torch_private::SavedTensorDefaultHooks::is_enabled() ? current_hooks() : nullptr;
  if (hooks_) {
    const at::NoGradGuard no_grad;
    const Packing packing;
    hooks_->call_pack_hook(t);
  } else {
    // Not the tensor itself: where forward returns it, modified in place, that would be a cycle.
    data_ = t.tensor_data();
  }
}

void SavedInput::check(const std::string& region, std::size_t index) const {
  if (!version_) return;
  if (const auto why = version_->changed(); !why.empty()) {
    const auto what = data_.defined() ? " (" + Shape(data_).text() + ")" : std::string();
    throw RecomputeError("recoup: " + region + ": input " + std::to_string(index) + what + " " +
                         why);
  }
}

at::Tensor SavedInput::data() {
  if (!version_) return {};
  return (hooks_ ? hooks_->call_unpack_hook() : data_).tensor_data();
}

}  // namespace recoup
