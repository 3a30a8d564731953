// LibTorch's side of a Recompute: see recoup/checkpoint/framework.h for what each function is to
// do.
#pragma once

#include <c10/core/Event.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "announcer.h"
#include "fingerprint.h"
#include "recompute_state.h"
#include "recoup/checkpoint/checkpoint.h"
#include "recoup/checkpoint/recompute.h"
#include "saved_input.h"
#include "small_tensors.h"
#include "tensor_facts.h"
#include "torch_private.h"

namespace recoup {

class Region;
class RestPart;

class LibTorchFramework : public FrameworkDefaults {
 public:
  using Tensor = at::Tensor;

  struct Record {
    Shape shape;
    Version version;
    // For a tensor without history: its storage, not its data. The same storage again in the
    // recompute belongs to something that was there before the region: an input, a frozen weight, a
    // buffer.
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    std::shared_ptr<Fingerprint> values;  // null: not compared
  };

  struct Held {
    at::Tensor data;
    std::optional<Version> version;
    // Set where `data` is a leaf, whose storage may be another by the time it is read.
    std::shared_ptr<const Geometry> of_leaf;
  };

  LibTorchFramework(Region& region, Forward forward, Forward rest, const Tensors& inputs,
                    const CheckpointOptions& options);
  ~LibTorchFramework();

  Record describe(const at::Tensor& t);
  std::optional<Held> keep(const Record& record, const at::Tensor& t);
  std::string changed(const Record& record) const;
  void check_inputs() const;
  void refresh(Record& record, Held* kept) const {
    record.version.refresh();
    if (kept != nullptr && kept->version) kept->version->refresh();
  }
  std::string mismatch(const Record& record, const at::Tensor& t) const;
  std::string kept_mismatch(const Held& held, const at::Tensor& t) const;
  bool checks_values() const { return options_.check != Check::kShapes; }
  std::string values_mismatch(const Record& record, const Held& held) const;
  bool may_stop_after(const Record& record, const at::Tensor& t) const;
  using Operation = std::uint64_t;
  Operation operation() const { return torch_private::next_node_number(); }
  Held hold(const at::Tensor& t) const { return hold(t, t.tensor_data()); }
  Held hold(const at::Tensor& t, const at::Tensor& data) const {
    return {data, Version(t), nullptr};
  }
  bool read(const Held& held, at::Tensor* t, std::string* error) const;
  const void* reader() const { return torch_private::get_current_node().get(); }
  void recompute();
  [[noreturn]] void stop(const void* region) const;
  bool stopped_by(const void* region) const { return options_.runtime->stopped_by(region); }
  std::unique_lock<std::mutex> lock(std::mutex& mutex) const {
    return options_.runtime->lock(mutex);
  }
  const std::string& name() const { return options_.name; }

  // Beyond what Recompute asks for.
  Announcer& announcer() { return announcer_; }
  // The forward's own run.
  Tensors run(const Tensors& inputs);
  // A tensor has got a slot.
  void recorded(std::size_t slot, const at::Tensor& t);
  // The forward has run, its nodes numbered from `first_node` on; `drawn`: what it drew from;
  // `see`: as of Unsaved::note().
  void forward_done(const Tensors& inputs, const Tensors& outputs, std::uint64_t first_node,
                    std::vector<RngState> drawn,
                    const std::function<void(torch_private::Node&)>& see);
  const Runtime& runtime() const { return *options_.runtime; }
  // Until forward_done() returns: the tensor that has this slot, where it may be kept as itself and
  // is unmodified: a leaf, or an input that the region keeps anyway. Undefined: none.
  at::Tensor itself_in(std::size_t slot) const;

 private:
  struct Done {
    c10::Stream stream;
    std::shared_ptr<c10::Event> event;
  };
  void take_pending_values();
  Tensors inputs_again();
  void streams_wait_for_current(const Tensors& leaves);
  // Makes the current stream of each device wait for the last recompute, where that ran on another.
  void wait_for_recompute(const at::Tensor& t) const;

  Region& region_;
  Forward forward_;
  std::unique_ptr<RestPart> rest_;  // null: the forward has one part
  CheckpointOptions options_;
  Announcer announcer_;
  RecomputeState state_;
  SmallTensors small_;
  Unsaved unsaved_;
  std::vector<SavedInput> inputs_;    // or what pack_inputs() made of them
  std::vector<bool> requires_grad_;   // of each of the forward's inputs
  std::vector<Done> recompute_done_;  // guarded by Recompute's long mutex
  struct Itself {
    std::size_t slot;
    at::Tensor tensor;
    Version version;
  };
  bool may_keep_itself(const at::Tensor& t) const;
  // Of a runtime with functions of its own, until forward_done().
  std::vector<Itself> themselves_;
  const Tensors* forward_inputs_ = nullptr;  // while the forward runs
  // Saved by the operation under way, which may not have filled them yet.
  std::vector<std::pair<std::shared_ptr<Fingerprint>, at::Tensor>> pending_values_;
  Operation pending_operation_ = 0;
};

// One run of a checkpointed forward, waiting for its backward.
class Region : public Recompute<LibTorchFramework>, public std::enable_shared_from_this<Region> {
 public:
  Region(Forward forward, Forward rest, const Tensors& inputs, const CheckpointOptions& options)
      : Recompute(options.early_stop, *this, std::move(forward), std::move(rest), inputs, options) {
  }
};

}  // namespace recoup
