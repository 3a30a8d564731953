// The engine behind recoup/checkpoint/checkpoint.h: a Replay (slots, early stop) whose Host is
// LibTorch.
//
// Ownership: the graph's saved variables own the hooks, the hooks own the Region, the Region owns
// the forward and the inputs. Nothing points back into the graph, so a region dies with the last
// saved variable.
#include "recoup/checkpoint/checkpoint.h"

#include <ATen/SequenceNumber.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <sstream>

#include "ambient.h"
#include "engine.h"
#include "recoup/checkpoint/replay.h"

namespace recoup {
namespace {

using torch::autograd::SavedVariableHooks;

std::string describe(c10::IntArrayRef sizes, at::ScalarType dtype, at::Device device) {
  std::ostringstream text;
  text << dtype << sizes << " on " << device;
  return text.str();
}

std::string producer(const at::Tensor& t) {
  if (const auto& fn = t.grad_fn()) return ", produced by " + fn->name();
  return t.requires_grad() ? ", a parameter or input" : "";
}

// A version counter as it was: in-place operations on the tensor or any view of it advance it.
class Version {
 public:
  explicit Version(const at::Tensor& t)
      : counter_(torch::autograd::impl::version_counter(t)), saved_(counter_.current_version()) {}

  // Why the data is no longer what it was, or empty.
  std::string changed() const {
    if (counter_.current_version() == saved_) return {};
    return "was modified by an in-place operation after it was saved: it is at version " +
           std::to_string(counter_.current_version()) + ", expected version " +
           std::to_string(saved_) + "; modify a clone instead, or modify it after backward";
  }

 private:
  c10::VariableVersion counter_;
  std::uint32_t saved_;
};

// A tensor kept from forward to backward.
class SavedInput {
 public:
  explicit SavedInput(const at::Tensor& t) {
    if (!t.defined()) return;
    version_.emplace(t);
    // Within another region (or Python hooks) the input is that region's to drop and recompute.
    hooks_ = at::SavedTensorDefaultHooks::is_enabled() ? current_hooks() : nullptr;
    if (hooks_) {
      const at::NoGradGuard no_grad;
      hooks_->call_pack_hook(t);
    } else {
      // Not the tensor itself: where forward returns it, modified in place, that would be a cycle.
      data_ = t.tensor_data();
    }
  }

  // The tensor's data. Throws where it was modified since.
  at::Tensor data(const std::string& region, std::size_t index) {
    if (!version_) return {};
    if (const auto why = version_->changed(); !why.empty()) {
      const auto what =
          data_.defined()
              ? " (" + describe(data_.sizes(), data_.scalar_type(), data_.device()) + ")"
              : std::string();
      throw ReplayError("recoup: " + region + ": input " + std::to_string(index) + what + " " +
                        why);
    }
    return (hooks_ ? hooks_->call_unpack_hook() : data_).tensor_data();
  }

 private:
  std::optional<Version> version_;
  std::unique_ptr<SavedVariableHooks> hooks_;
  at::Tensor data_;
};

class Region;

// LibTorch's side of a Replay; see recoup/checkpoint/replay.h for what each function is to do.
class TorchHost {
 public:
  using Tensor = at::Tensor;

  struct Record {
    c10::DimVector sizes;
    at::ScalarType dtype;
    at::Device device;
    Version version;
    // For a tensor without history: its storage, not its data. The same storage again in the rerun
    // belongs to something that was there before the region: an input, a frozen weight, a buffer.
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  };

  struct Held {
    at::Tensor data;
    std::optional<Version> version;
  };

  TorchHost(Region& region, Forward forward, const Tensors& inputs,
            const CheckpointOptions& options)
      : region_(region), forward_(std::move(forward)), options_(options), ambient_(inputs) {
    TORCH_CHECK(!options.keep == !options.restore, "recoup: keep and restore go together");
    for (const auto& input : inputs) {
      requires_grad_.push_back(input.defined() && input.requires_grad());
    }
    const auto save = [this](const Tensors& tensors) {
      inputs_.reserve(tensors.size());
      for (const auto& t : tensors) inputs_.emplace_back(t);
    };
    if (options.keep) {
      const at::NoGradGuard no_grad;
      save(options.keep(inputs));
    } else {
      save(inputs);
    }
  }

  static c10::weak_intrusive_ptr<c10::StorageImpl> no_storage() {
    return c10::weak_intrusive_ptr<c10::StorageImpl>(c10::intrusive_ptr<c10::StorageImpl>(nullptr));
  }

  Record describe(const at::Tensor& t) const {
    const bool historyless = !t.requires_grad() && t.has_storage();
    return {c10::DimVector(t.sizes()), t.scalar_type(), t.device(), Version(t),
            historyless ? t.storage().getWeakStorageImpl() : no_storage()};
  }

  std::string changed(const Record& record) const {
    auto why = record.version.changed();
    if (why.empty()) return why;
    return "(" + recoup::describe(record.sizes, record.dtype, record.device) + ") " + why;
  }

  std::string mismatch(const Record& record, const at::Tensor& t) const {
    if (record.dtype == t.scalar_type() && record.device == t.device() &&
        t.sizes() == c10::IntArrayRef(record.sizes)) {
      return {};
    }
    return "the forward saved " + recoup::describe(record.sizes, record.dtype, record.device) +
           ", the recompute " + recoup::describe(t.sizes(), t.scalar_type(), t.device()) +
           producer(t) + "; the forward must compute the same thing when it is run again";
  }

  // An operation may save a buffer before its kernel has filled it (rrelu_with_noise does, pytorch
  // issue 193671). A tensor with history is the result of a finished operation; one that requires
  // grad without history is a parameter or an input; one whose storage outlived the forward was not
  // made in the region at all. Of any other tensor nothing is known, so its operation must finish.
  //
  // So must one that saves its own result: where that is a torch::autograd::Function, an exception
  // would leave its context holding the result, whose history holds the context: a leak.
  bool leavable(const Record& record, const at::Tensor& t) const {
    if (t.requires_grad()) {
      const auto& node = t.grad_fn();
      return !node || node->sequence_nr() + 1 != operation();
    }
    return t.has_storage() &&
           record.storage._unsafe_get_target() == t.storage().unsafeGetStorageImpl();
  }

  // Autograd numbers the nodes of a thread as it makes them, before they save anything.
  using Operation = std::uint64_t;
  Operation operation() const { return at::sequence_number::peek(); }

  Held hold(const at::Tensor& t) const { return {t.tensor_data(), Version(t)}; }

  bool read(const Held& held, at::Tensor* t, std::string* problem) const {
    if (!held.data.defined()) return false;
    // The region itself modified what it had saved: stock autograd refuses that too.
    *problem = held.version->changed();
    *t = held.data;
    return true;
  }

  const void* reader() const { return torch::autograd::get_current_node().get(); }

  void rerun();

  [[noreturn]] void stop(const void* replay) const {
    options_.runtime->stop(replay);
    throw EarlyStop{replay};  // not reached: a Runtime's stop() does not return
  }
  bool stopped_by(const void* replay) const { return options_.runtime->stopped_by(replay); }
  std::unique_lock<std::mutex> lock(std::mutex& mutex) const {
    return options_.runtime->lock(mutex);
  }
  const std::string& name() const { return options_.name; }

  const Forward& forward() const { return forward_; }
  Ambient& ambient() { return ambient_; }

  // Makes the current stream of each device wait for the last rerun, where that ran on another.
  void wait_for_rerun(const at::Tensor& t) const {
    for (const auto& done : rerun_done_) {
      const auto device = done.event->device();
      if (t.device() != device) continue;
      const c10::impl::VirtualGuardImpl guard(device.type());
      const auto current = guard.getStream(device);
      if (current == done.stream) continue;
      done.event->block(current);
      if (t.has_storage()) guard.recordDataPtrOnStream(t.storage().data_ptr(), current);
    }
  }

 private:
  struct Done {
    c10::Stream stream;
    std::shared_ptr<c10::Event> event;
  };
  Region& region_;
  Forward forward_;
  CheckpointOptions options_;
  Ambient ambient_;
  std::vector<SavedInput> inputs_;   // or what keep() made of them
  std::vector<bool> requires_grad_;  // of each of the forward's inputs
  std::vector<Done> rerun_done_;
};

class Region : public Replay<TorchHost>, public std::enable_shared_from_this<Region> {
 public:
  Region(Forward forward, const Tensors& inputs, const CheckpointOptions& options)
      : Replay(options.early_stop, *this, std::move(forward), inputs, options) {}
};

// The hooks of a tensor saved by the forward.
class ForwardHooks final : public SavedVariableHooks {
 public:
  explicit ForwardHooks(std::shared_ptr<Region> region) : region_(std::move(region)) {}
  ~ForwardHooks() override {
    if (slot_) region_->release(*slot_);
  }
  void call_pack_hook(const at::Tensor& t) override { slot_ = region_->record(t); }
  at::Tensor call_unpack_hook() override {
    auto t = region_->take(*slot_);
    region_->host().wait_for_rerun(t);
    return t;
  }

 private:
  std::shared_ptr<Region> region_;
  std::optional<std::size_t> slot_;
};

// The hooks of a tensor saved by the rerun. The rerun's graph is dropped at its end; until then a
// forward that itself runs a backward may read from it.
class RerunHooks final : public SavedVariableHooks {
 public:
  explicit RerunHooks(Region& region) : region_(region) {}
  void call_pack_hook(const at::Tensor& t) override {
    held_ = t.tensor_data();
    region_.refill(t);
  }
  at::Tensor call_unpack_hook() override { return held_; }

 private:
  Region& region_;
  at::Tensor held_;
};

class ForwardScope final : public HookScope {
 public:
  explicit ForwardScope(std::shared_ptr<Region> region) : region_(std::move(region)) {}
  std::unique_ptr<SavedVariableHooks> make() override {
    return std::make_unique<ForwardHooks>(region_);
  }

 private:
  std::shared_ptr<Region> region_;
};

class RerunScope final : public HookScope {
 public:
  explicit RerunScope(Region& region) : region_(region) {}
  std::unique_ptr<SavedVariableHooks> make() override {
    return std::make_unique<RerunHooks>(region_);
  }

 private:
  Region& region_;
};

void TorchHost::rerun() {
  Tensors leaves;
  leaves.reserve(inputs_.size());
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    leaves.push_back(inputs_[i].data(options_.name, i));
  }
  if (options_.restore) {
    const at::NoGradGuard no_grad;
    leaves = options_.restore(leaves);
    for (auto& leaf : leaves) leaf = leaf.defined() ? leaf.detach() : leaf;
  }
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (requires_grad_.at(i)) leaves[i].set_requires_grad(true);  // of the rerun's own graph
  }
  // What this backward recomputes and does not read goes when it ends.
  if (torch::autograd::get_current_graph_task_id() != -1) {
    torch::autograd::Engine::get_default_engine().queue_callback(
        [region = region_.weak_from_this()] {
          if (const auto alive = region.lock()) alive->forget();
        });
  }

  // The inputs may be the work of this thread's current streams, the forward's streams must wait.
  for (const auto& stream : ambient_.streams()) {
    const auto current =
        c10::impl::VirtualGuardImpl(stream.device_type()).getStream(stream.device());
    if (current == stream) continue;
    c10::Event ready(stream.device_type());
    ready.record(current);
    ready.block(stream);
  }
  rerun_done_.clear();
  struct RecordDone {  // also where the rerun ends early
    TorchHost& host;
    ~RecordDone() {
      for (const auto& stream : host.ambient_.streams()) {
        auto event = std::make_shared<c10::Event>(stream.device_type());
        event->record(stream);
        host.rerun_done_.push_back({stream, std::move(event)});
      }
    }
  } record_done{*this};

  const ScopedAmbient ambient(ambient_);
  RerunScope scope(region_);
  forward_(leaves);
}

}  // namespace

void Runtime::stop(const void* replay) const { throw EarlyStop{replay}; }

bool Runtime::stopped_by(const void* replay) const {
  try {
    throw;
  } catch (const EarlyStop& stop) {
    return stop.replay == replay;
  } catch (...) {
    return false;
  }
}

std::unique_lock<std::mutex> Runtime::lock(std::mutex& mutex) const {
  return std::unique_lock<std::mutex>(mutex);
}

const Runtime& Runtime::cpp() {
  static const Runtime runtime;
  return runtime;
}

Tensors checkpoint(Forward forward, const Tensors& inputs, const CheckpointOptions& options) {
  if (!at::GradMode::is_enabled()) return forward(inputs);
  const auto region = std::make_shared<Region>(std::move(forward), inputs, options);
  const RngWatch rng(inputs, options.preserve_rng);
  Tensors outputs;
  {
    const NoAutocastCache no_cache;
    ForwardScope scope(region);
    outputs = region->host().forward()(inputs);
  }
  region->seal();
  region->host().ambient().set_rng(rng.drawn());
  return outputs;
}

at::Tensor checkpoint(std::function<at::Tensor(const at::Tensor&)> forward, const at::Tensor& input,
                      const CheckpointOptions& options) {
  return checkpoint(
      [forward = std::move(forward)](const Tensors& in) -> Tensors { return {forward(in[0])}; },
      Tensors{input}, options)[0];
}

}  // namespace recoup
