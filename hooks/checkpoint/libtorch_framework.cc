#include "libtorch_framework.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "rest_part.h"
#include "saved_tensors.h"

namespace recoup {
namespace {

thread_local int recomputes_under_way = 0;

std::string producer(const at::Tensor& t) {
  if (const auto& fn = t.grad_fn()) return ", produced by " + fn->name();
  return t.requires_grad() ? ", a parameter or input" : "";
}

c10::weak_intrusive_ptr<c10::StorageImpl> no_storage() {
  return c10::weak_intrusive_ptr<c10::StorageImpl>(c10::intrusive_ptr<c10::StorageImpl>(nullptr));
}

// The hooks of a tensor saved by the recompute. The recompute's graph is dropped at its end; until
// then a forward that itself runs a backward may read from it.
class RecomputeHooks final : public torch_private::Hooks {
 public:
  explicit RecomputeHooks(Region& region) : region_(region) {}
  void call_pack_hook(const at::Tensor& t) override {
    held_ = t.tensor_data();
    region_.refill(t, SavedInput::packing(), held_);
  }
  at::Tensor call_unpack_hook() override { return held_; }
  const std::string& region_name() const override { return region_.framework().name(); }

 private:
  Region& region_;
  at::Tensor held_;
};

constexpr const char* kSameThing = "; the forward must compute the same thing when it is run again";

}  // namespace

bool recomputing() { return recomputes_under_way > 0; }

LibTorchFramework::LibTorchFramework(Region& region, Forward forward, Forward rest,
                                     const Tensors& inputs, const CheckpointOptions& options)
    : region_(region),
      forward_(std::move(forward)),
      rest_(rest ? std::make_unique<RestPart>(region, std::move(rest)) : nullptr),
      options_(options),
      announcer_(options),
      state_(inputs),
      small_(inputs, options.keep_small) {
  TORCH_CHECK(!options.pack_inputs == !options.unpack_inputs, "recoup: ", options.name,
              ": pack_inputs and unpack_inputs go together");
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

LibTorchFramework::~LibTorchFramework() { announcer_.tell(&EventListener::released); }

Tensors LibTorchFramework::run(const Tensors& inputs) {
  forward_inputs_ = &inputs;
  auto outputs = forward_(inputs);
  return rest_ ? rest_->run(outputs) : outputs;
}

void LibTorchFramework::recorded(std::size_t slot, const at::Tensor& t) {
  if (rest_ && rest_->running()) rest_->recorded(slot, t);
  if (options_.runtime != &Runtime::cpp() && may_keep_itself(t)) {
    themselves_.push_back({slot, t, Version(t)});
  }
}

bool LibTorchFramework::may_keep_itself(const at::Tensor& t) const {
  if (!t.is_leaf()) return false;
  for (std::size_t i = 0; i < forward_inputs_->size(); ++i) {
    if (!(*forward_inputs_)[i].is_same(t)) continue;
    return !options_.pack_inputs && (t.requires_grad() || inputs_[i].is_kept_here());
  }
  return t.requires_grad();
}

at::Tensor LibTorchFramework::itself_in(std::size_t slot) const {
  for (const auto& one : themselves_) {
    if (one.slot == slot && one.version.is_current()) return one.tensor;
  }
  return {};
}

void LibTorchFramework::forward_done(const Tensors& inputs, const Tensors& outputs,
                                     std::uint64_t first_node, std::vector<RngState> drawn,
                                     const std::function<void(torch_private::Node&)>& see) {
  if (checks_values()) take_pending_values();
  if (rest_) rest_->decide(outputs, options_.name);
  unsaved_.note(outputs, first_node, inputs, options_.reads, themselves_.empty() ? nullptr : see);
  themselves_.clear();
  state_.set_rng(std::move(drawn));
}

LibTorchFramework::Record LibTorchFramework::describe(const at::Tensor& t) {
  announcer_.saved(t);
  const bool historyless = !t.requires_grad() && t.has_storage();
  Record record{Shape(t), Version(t), historyless ? t.storage().getWeakStorageImpl() : no_storage(),
                nullptr};
  if (checks_values()) {
    if (operation() != pending_operation_) take_pending_values();
    pending_operation_ = operation();
    record.values = std::make_shared<Fingerprint>();
    pending_values_.emplace_back(record.values, t.tensor_data());
  }
  return record;
}

// Rule 3 of checkpoint.cc: only once another operation saves is a saved buffer known to be filled.
void LibTorchFramework::take_pending_values() {
  for (auto& [values, t] : std::exchange(pending_values_, {})) {
    values->take(t, options_.check == Check::kCopy);
  }
}

std::optional<LibTorchFramework::Held> LibTorchFramework::keep(const Record&, const at::Tensor& t) {
  if (rest_ && rest_->running() && t.layout() == at::kStrided && !t.is_nested()) {
    const auto leaf = leaf_of(t);
    if (leaf.defined() && leaf.scalar_type() == t.scalar_type() &&
        !leaf.unsafeGetTensorImpl()->is_python_dispatch()) {
      return Held{leaf, Version(leaf), std::make_shared<const Geometry>(t)};
    }
  }
  if (!small_.is_one(t) && !(options_.keep_saved && options_.keep_saved(t))) return std::nullopt;
  announcer_.keeps(small_.keep(t));
  return hold(t);
}

std::string LibTorchFramework::changed(const Record& record) const {
  if (record.version.is_current()) return {};
  return "(" + record.shape.text() + ") " + record.version.changed();
}

void LibTorchFramework::check_inputs() const {
  for (std::size_t i = 0; i < inputs_.size(); ++i) inputs_[i].check(options_.name, i);
  unsaved_.check(options_.name);
}

std::string LibTorchFramework::mismatch(const Record& record, const at::Tensor& t) const {
  const Shape shape(t);
  if (shape == record.shape) return {};
  return "the forward saved " + record.shape.text() + ", the recompute " + shape.text() +
         producer(t) + kSameThing;
}

std::string LibTorchFramework::kept_mismatch(const Held& held, const at::Tensor& t) const {
  if (!held.data.defined() || held.of_leaf || !t.is_cpu() ||
      !at::isIntegralType(t.scalar_type(), /*includeBool=*/true)) {
    return {};
  }
  const at::NoGradGuard no_grad;
  if (at::equal(held.data, t)) return {};
  return "the recompute has other values than the forward's " + Shape(t).text() + kSameThing;
}

std::string LibTorchFramework::values_mismatch(const Record& record, const Held& held) const {
  if (!record.values || !held.data.defined()) return {};
  const auto how = record.values->differs(held.data);
  if (how.empty()) return {};
  return "(" + record.shape.text() + ") " + how + kSameThing;
}

// Rule 3 of checkpoint.cc.
bool LibTorchFramework::may_stop_after(const Record& record, const at::Tensor& t) const {
  if (t.requires_grad()) {
    const auto& node = t.grad_fn();
    return !node || node->sequence_nr() + 1 != operation();
  }
  return t.has_storage() &&
         record.storage._unsafe_get_target() == t.storage().unsafeGetStorageImpl();
}

bool LibTorchFramework::read(const Held& held, at::Tensor* t, std::string* error) const {
  if (!held.data.defined()) return false;
  // The region itself modified what it had saved: stock autograd refuses that too.
  if (!held.version->is_current()) *error = held.version->changed();
  *t = held.data;
  if (held.of_leaf) *t = view_at(held.data.tensor_data(), *held.of_leaf);
  wait_for_recompute(*t);
  return true;
}

void LibTorchFramework::stop(const void* region) const {
  options_.runtime->stop(region);
  throw StopRecompute{region};  // not reached: a Runtime's stop() does not return
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
  ++recomputes_under_way;
  struct Ends {  // also where the recompute ends early
    LibTorchFramework& framework;
    ~Ends() {
      --recomputes_under_way;
      framework.unsaved_.refresh();
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
  const auto outputs = forward_(leaves);
  if (!rest_) return;
  if (rest_->first_part_is_enough()) {
    rest_->refill(outputs);
  } else {
    rest_->forward()(outputs);
  }
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
