#include "libtorch_framework.h"

#include <c10/core/GradMode.h>

#include <sstream>

#include "saved_tensors.h"

namespace recoup {
namespace {

std::string producer(const at::Tensor& t) {
  if (const auto& fn = t.grad_fn()) return ", produced by " + fn->name();
  return t.requires_grad() ? ", a parameter or input" : "";
}

c10::weak_intrusive_ptr<c10::StorageImpl> no_storage() {
  return c10::weak_intrusive_ptr<c10::StorageImpl>(c10::intrusive_ptr<c10::StorageImpl>(nullptr));
}

// The hooks of a tensor saved by the recompute. The recompute's graph is dropped at its end; until
// then a forward that itself runs a backward may read from it.
class RecomputeHooks final : public torch_private::SavedVariableHooks {
 public:
  explicit RecomputeHooks(Region& region) : region_(region) {}
  void call_pack_hook(const at::Tensor& t) override {
    held_ = t.tensor_data();
    region_.refill(t);
  }
  at::Tensor call_unpack_hook() override { return held_; }

 private:
  Region& region_;
  at::Tensor held_;
};

}  // namespace

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

std::string Version::changed() const {
  if (counter_.current_version() == saved_) return {};
  return "was modified by an in-place operation after it was saved: it is at version " +
         std::to_string(counter_.current_version()) + ", expected version " +
         std::to_string(saved_) + "; modify a clone instead, or modify it after backward";
}

Announcer::Announcer(const CheckpointOptions& options) : listener_(options.listener) {
  if (!listener_) return;
  static std::atomic<std::uint64_t> runs{0};
  info_ = std::make_unique<const RegionInfo>(RegionInfo{options.name, options.layer_number,
                                                        options.module, options.microbatch, ++runs,
                                                        options.recompute});
}

void Announcer::unpacks() {
  if (!listener_) return;
  const int backward = torch_private::get_current_graph_task_id();
  if (backward_.exchange(backward) != backward || backward == -1) {
    listener_->backward_begins(*info_);
  }
}

SavedInput::SavedInput(const at::Tensor& t) {
  if (!t.defined()) return;
  version_.emplace(t);
  // Within another region (or Python hooks) the input is that region's to drop and recompute.
  hooks_ = torch_private::SavedTensorDefaultHooks::is_enabled() ? current_hooks() : nullptr;
  if (hooks_) {
    const at::NoGradGuard no_grad;
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

LibTorchFramework::LibTorchFramework(Region& region, Forward forward, const Tensors& inputs,
                                     const CheckpointOptions& options)
    : region_(region),
      forward_(std::move(forward)),
      options_(options),
      announcer_(options),
      state_(inputs) {
  TORCH_CHECK(!options.pack_inputs == !options.unpack_inputs,
              "recoup: pack_inputs and unpack_inputs go together");
  for (const auto& input : inputs) {
    requires_grad_.push_back(input.defined() && input.requires_grad());
  }
  const auto save = [this](const Tensors& tensors) {
    inputs_.reserve(tensors.size());
    for (const auto& t : tensors) inputs_.emplace_back(t);
  };
  if (options.pack_inputs) {
    const at::NoGradGuard no_grad;
    save(options.pack_inputs(inputs));
  } else {
    save(inputs);
  }
}

LibTorchFramework::Record LibTorchFramework::describe(const at::Tensor& t) const {
  announcer_.saved(t);
  const bool historyless = !t.grad_fn() && t.has_storage();
  return {Shape(t), Version(t), historyless ? t.storage().getWeakStorageImpl() : no_storage()};
}

std::string LibTorchFramework::changed(const Record& record) const {
  auto why = record.version.changed();
  if (why.empty()) return why;
  return "(" + record.shape.text() + ") " + why;
}

std::string LibTorchFramework::mismatch(const Record& record, const at::Tensor& t) const {
  const Shape shape(t);
  if (shape == record.shape) return {};
  return "the forward saved " + record.shape.text() + ", the recompute " + shape.text() +
         producer(t) + "; the forward must compute the same thing when it is run again";
}

namespace {
// Whether `t` has the storage of the tensor that the forward saved: something from before the
// region.
bool same_storage(const LibTorchFramework::Record& record, const at::Tensor& t) {
  return t.has_storage() &&
         record.storage._unsafe_get_target() == t.storage().unsafeGetStorageImpl();
}
}  // namespace

// Rule 3 of checkpoint.cc.
bool LibTorchFramework::may_stop_after(const Record& record, const at::Tensor& t) const {
  if (t.requires_grad()) {
    const auto& node = t.grad_fn();
    return !node || node->sequence_nr() + 1 != operation();
  }
  return same_storage(record, t);
}

LibTorchFramework::Held LibTorchFramework::hold(Record& record, const at::Tensor& t) const {
  const Version version(t);
  if (same_storage(record, t)) record.version = version;
  return {t.tensor_data(), version};
}

bool LibTorchFramework::read(const Held& held, at::Tensor* t, std::string* error) const {
  if (!held.data.defined()) return false;
  // The region itself modified what it had saved: stock autograd refuses that too.
  *error = held.version->changed();
  *t = held.data;
  return true;
}

void LibTorchFramework::stop(const void* region) const {
  options_.runtime->stop(region);
  throw StopRecompute{region};  // not reached: a Runtime's stop() does not return
}

void LibTorchFramework::check_inputs() const {
  for (std::size_t i = 0; i < inputs_.size(); ++i) inputs_[i].check(options_.name, i);
}

Tensors LibTorchFramework::inputs_again() {
  Tensors leaves;
  leaves.reserve(inputs_.size());
  for (auto& input : inputs_) leaves.push_back(input.data());
  if (options_.unpack_inputs) {
    const at::NoGradGuard no_grad;
    leaves = options_.unpack_inputs(leaves);
    for (auto& leaf : leaves) leaf = leaf.defined() ? leaf.detach() : leaf;
  }
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (requires_grad_.at(i)) leaves[i].set_requires_grad(true);  // of the recompute's own graph
  }
  return leaves;
}

// The inputs may be the work of this thread's current streams: the forward's streams must wait, and
// the inputs' memory is in use there until the recompute's kernels are through.
void LibTorchFramework::streams_wait_for_current(const Tensors& leaves) {
  for (const auto& stream : state_.streams()) {
    const torch_private::VirtualGuardImpl guard(stream.device_type());
    const auto current = guard.getStream(stream.device());
    if (current == stream) continue;
    c10::Event ready(stream.device_type());
    ready.record(current);
    ready.block(stream);
    for (const auto& leaf : leaves) {
      if (leaf.defined() && leaf.device() == stream.device() && leaf.has_storage()) {
        guard.recordDataPtrOnStream(leaf.storage().data_ptr(), stream);
      }
    }
  }
}

void LibTorchFramework::recompute() {
  announcer_.tell(&EventListener::recompute_begins);
  recompute_done_.clear();
  struct Ends {  // also where the recompute ends early
    LibTorchFramework& framework;
    ~Ends() {
      for (const auto& stream : framework.state_.streams()) {
        auto event = std::make_shared<c10::Event>(stream.device_type());
        event->record(stream);
        framework.recompute_done_.push_back({stream, std::move(event)});
      }
      framework.announcer_.tell(&EventListener::recompute_ends);
    }
  } ends{*this};

  auto leaves = inputs_again();
  // What this backward recomputes and does not read goes when it ends.
  if (torch_private::get_current_graph_task_id() != -1) {
    torch_private::Engine::get_default_engine().queue_callback([region = region_.weak_from_this()] {
      if (const auto alive = region.lock()) alive->clear_held();
    });
  }
  streams_wait_for_current(leaves);
  const ScopedRecomputeState state(state_);
  HooksOf<RecomputeHooks, Region&> scope(region_);
  forward_(leaves);
}

void LibTorchFramework::wait_for_recompute(const at::Tensor& t) const {
  for (const auto& done : recompute_done_) {
    const auto device = done.event->device();
    if (t.device() != device) continue;
    const torch_private::VirtualGuardImpl guard(device.type());
    const auto current = guard.getStream(device);
    if (current == done.stream) continue;
    done.event->block(current);
    if (t.has_storage()) guard.recordDataPtrOnStream(t.storage().data_ptr(), current);
  }
}

}  // namespace recoup
