// The engine behind recoup/checkpoint/checkpoint.h. Start reading at checkpoint(), the first
// function below; recoup/checkpoint/recompute.h has the slots and the early stop,
// libtorch_framework.cc what is LibTorch's, saved_tensors.h how hooks reach autograd.
//
// The rules that a region keeps to:
//
// Rule 1: nothing points back. The graph's saved variables own the hooks, the hooks own the Region,
//   the Region owns the forward and the inputs' data (not the inputs, whose history may lead here).
//   So a region dies with the last saved variable, and never needs a garbage collector.
// Rule 2: one recompute a backward. The first unpack recomputes for all slots still wanted. What a
//   node has read is freed when another node of the thread reads, what nobody read when the
//   backward ends.
// Rule 3: a recompute stops at the last slot wanted, as soon as the operation under way may be
// left.
//   An operation may save a buffer before its kernel has filled it (rrelu_with_noise does, pytorch
//   issue 193671). A tensor with history is the result of a finished operation; one that requires
//   grad without history is a parameter or an input; one whose storage outlived the forward was not
//   made in the region at all. Of any other tensor nothing is known, so its operation must finish.
//   So must one that saves its own result: where that is a torch::autograd::Function, an exception
//   would leave its context holding the result, whose history holds the context: a leak.
// Rule 4: what was modified in place between forward and backward is refused, as stock autograd
//   does: an input, a saved parameter, a saved tensor.
//   So is, at the recompute, a leaf that the region's nodes accumulate into and whose value
//   autograd does not need (a bias), and what CheckpointOptions::reads names.
// Rule 5: a recompute must save what the forward did, in number, shape, dtype and device; in values
//   where CheckpointOptions::check says so.
// Rule 6: an error leaves nothing behind: no half-filled slot, no hook, no generator's state. The
//   same graph may be tried again.
// Rule 7: regions nest. An inner region's inputs are packed by the hooks outside it, so that an
//   outer region drops and recomputes them. No operation is under way then, so that the outer
//   recompute may end there: it does not enter the last inner region.
// Rule 8: what is small beside the inputs is kept. A recompute that must go on to the end of the
//   region for 8 bytes a row costs more than they do.
// Rule 9: a parameter, or an input that is kept anyway, that a function of the runtime's language
//   saves (torch.autograd.Function) is saved as itself, so that the function finds on it in
//   backward what others have put there. Such a variable has no hooks: they can give a tensor's
//   value, not its object.
#include "recoup/checkpoint/checkpoint.h"

#include <c10/core/GradMode.h>

#include "libtorch_framework.h"
#include "saved_tensors.h"
#include "small_tensors.h"

namespace recoup {
namespace {

Tensors recomputed(Forward forward, Forward rest, const Tensors& inputs,
                   const CheckpointOptions& options);
Tensors kept(const Forward& forward, const Tensors& inputs, const CheckpointOptions& options);

}  // namespace

Tensors checkpoint(Forward forward, const Tensors& inputs, const CheckpointOptions& options) {
  if (!at::GradMode::is_enabled()) return forward(inputs);
  if (options.recompute) return recomputed(std::move(forward), nullptr, inputs, options);
  return options.listener ? kept(forward, inputs, options) : forward(inputs);
}

Tensors checkpoint_parts(Forward recomputed_part, Forward rest, const Tensors& inputs,
                         const CheckpointOptions& options) {
  if (!at::GradMode::is_enabled()) return rest(recomputed_part(inputs));
  if (options.recompute) {
    return recomputed(std::move(recomputed_part), std::move(rest), inputs, options);
  }
  const Forward both = [&](const Tensors& in) { return rest(recomputed_part(in)); };
  return options.listener ? kept(both, inputs, options) : both(inputs);
}

namespace {

// Which node reads in this thread, and of which regions it has read (of several where they nest).
// What it has read goes as soon as another node reads, of whichever region: where the graph is
// retained, autograd does not drop it.
thread_local struct {
  const void* reader = nullptr;
  std::vector<std::weak_ptr<Region>> regions;
} reading;

void clear_what_was_read(const std::shared_ptr<Region>& now) {
  const void* reader = now->framework().reader();
  if (reading.reader != reader) {
    for (const auto& region : reading.regions) {
      if (const auto alive = region.lock()) alive->clear_read_by(reading.reader);
    }
    reading.regions.clear();
    reading.reader = reader;
  }
  for (const auto& region : reading.regions) {
    if (!region.owner_before(now) && !now.owner_before(region)) return;
  }
  reading.regions.push_back(now);
}

// The hooks of a tensor saved by a forward that will be recomputed.
class ForwardHooks final : public torch_private::Hooks {
 public:
  explicit ForwardHooks(std::shared_ptr<Region> region) : region_(std::move(region)) {}
  ~ForwardHooks() override {
    if (slot_) region_->release(*slot_);
  }
  void call_pack_hook(const at::Tensor& t) override {
    slot_ = region_->record(t);
    region_->framework().recorded(*slot_, t);
  }
  at::Tensor call_unpack_hook() override {
    region_->framework().announcer().unpacks();
    clear_what_was_read(region_);
    auto t = region_->take(*slot_);
    // Outside of a backward (`y.grad_fn._saved_result`) no node reads on, and none ends it.
    if (torch_private::get_current_graph_task_id() == -1) region_->clear_held();
    return t;
  }
  const std::string& region_name() const override { return region_->framework().name(); }

  bool are_of(const Region& region) const { return region_.get() == &region; }
  std::size_t slot() const { return *slot_; }

 private:
  std::shared_ptr<Region> region_;
  std::optional<std::size_t> slot_;
};

// Rule 9.
void save_as_themselves(Region& region, torch_private::Node& node) {
  auto* saved = region.framework().runtime().saved_by(node);
  if (saved == nullptr) return;
  for (auto& variable : *saved) {
    const auto* hooks = dynamic_cast<const ForwardHooks*>(torch_private::Hooks::of(variable));
    if (hooks == nullptr || !hooks->are_of(region)) continue;
    const auto itself = region.framework().itself_in(hooks->slot());
    if (!itself.defined()) continue;
    const NoHooks scope;
    variable = torch_private::SavedVariable(itself, /*is_output=*/false);  // frees the hooks
  }
}

struct ForwardEnds {  // also where it throws
  const Announcer& announcer;
  ~ForwardEnds() { announcer.tell(&EventListener::forward_ends); }
};

// What autograd cannot recompute at all: a sentence in place of what would come of it.
void check_supported(const Tensors& inputs, const std::string& name) {
  TORCH_CHECK(torch_private::SavedTensorDefaultHooks::is_enabled(), "recoup: ", name,
              ": cannot checkpoint here, saved tensor hooks are disabled: ",
              torch_private::SavedTensorDefaultHooks::get_disabled_error_message().value_or(""));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined()) continue;
    const auto* impl = inputs[i].unsafeGetTensorImpl();
    TORCH_CHECK(
        !inputs[i].is_inference(), "recoup: ", name, ": input ", i,
        " is an inference tensor, made under torch.inference_mode(), which autograd does not "
        "track; clone() it outside of inference mode, or make it under no_grad()");
    TORCH_CHECK(
        !impl->key_set().has(c10::DispatchKey::FuncTorchBatched), "recoup: ", name, ": input ", i,
        " is batched by vmap, which has no saved tensors to recompute; apply vmap within the "
        "checkpoint, or run this part without one");
    TORCH_CHECK(!inputs[i]._fw_grad(/*level=*/0).defined(), "recoup: ", name, ": input ", i,
                " has a forward-mode tangent, which a recompute would lose; run forward-mode AD "
                "without a checkpoint");
  }
}

Tensors recomputed(Forward forward, Forward rest, const Tensors& inputs,
                   const CheckpointOptions& options) {
  check_supported(inputs, options.name);
  const auto region =
      std::make_shared<Region>(std::move(forward), std::move(rest), inputs, options);
  auto& framework = region->framework();
  const RngWatch rng(inputs, options.preserve_rng);
  framework.announcer().forward_begins(inputs);
  const ForwardEnds ends{framework.announcer()};
  const auto first_node = torch_private::next_node_number();
  Tensors outputs;
  {
    HooksOf<ForwardHooks, std::shared_ptr<Region>> scope(region);
    outputs = framework.run(inputs);
    scope.warn_if_bypassed(options.name);
  }
  region->forward_done();
  framework.forward_done(inputs, outputs, first_node, rng.drawn(),
                         [&](torch_private::Node& node) { save_as_themselves(*region, node); });
  return outputs;
}

// A region that somebody listens to and that is not recomputed.
struct KeptRegion {
  KeptRegion(const Tensors& inputs, const CheckpointOptions& options)
      : name(options.name), announcer(options), small(inputs, options.keep_small) {}
  ~KeptRegion() { announcer.tell(&EventListener::released); }
  const std::string name;
  Announcer announcer;
  SmallTensors small;  // what a recompute would keep
};

class KeptHooks final : public torch_private::Hooks {
 public:
  explicit KeptHooks(std::shared_ptr<KeptRegion> region) : region_(std::move(region)) {}
  void call_pack_hook(const at::Tensor& t) override {
    region_->announcer.saved(t);
    if (region_->small.is_one(t)) region_->announcer.keeps(region_->small.keep(t));
    version_.emplace(t);
    data_ = t.tensor_data();
  }
  at::Tensor call_unpack_hook() override {
    region_->announcer.unpacks();
    if (const auto why = version_->changed(); !why.empty()) {
      throw RecomputeError("recoup: " + region_->name + ": a saved tensor (" + Shape(data_).text() +
                           ") " + why);
    }
    return data_;
  }
  const std::string& region_name() const override { return region_->name; }

 private:
  std::shared_ptr<KeptRegion> region_;
  std::optional<Version> version_;
  at::Tensor data_;
};

Tensors kept(const Forward& forward, const Tensors& inputs, const CheckpointOptions& options) {
  const auto region = std::make_shared<KeptRegion>(inputs, options);
  region->announcer.forward_begins(inputs);
  const ForwardEnds ends{region->announcer};
  HooksOf<KeptHooks, std::shared_ptr<KeptRegion>> scope(region);
  return forward(inputs);
}

}  // namespace

void Runtime::stop(const void* region) const { throw StopRecompute{region}; }

bool Runtime::stopped_by(const void* region) const {
  return FrameworkDefaults().stopped_by(region);
}

std::unique_lock<std::mutex> Runtime::lock(std::mutex& mutex) const {
  return FrameworkDefaults().lock(mutex);
}

std::vector<torch::autograd::SavedVariable>* Runtime::saved_by(torch::autograd::Node&) const {
  return nullptr;
}

const Runtime& Runtime::cpp() {
  static const Runtime runtime;
  return runtime;
}

}  // namespace recoup
