// LibTorch's side of a Recompute: see recoup/checkpoint/recompute.h for what each function is to
// do.
#pragma once

#include <c10/core/Event.h>
#include <c10/util/DimVector.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "recompute_state.h"
#include "recoup/checkpoint/checkpoint.h"
#include "recoup/checkpoint/recompute.h"
#include "torch_private.h"

namespace recoup {

class Region;

// A version counter as it was: in-place operations on the tensor or any view of it advance it.
class Version {
 public:
  explicit Version(const at::Tensor& t)
      : counter_(torch_private::version_counter(t)), saved_(counter_.current_version()) {}

  // Why the data is no longer what it was, or empty.
  std::string changed() const;

 private:
  c10::VariableVersion counter_;
  std::uint32_t saved_;
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

// What a listener hears of a region. Nothing is kept and nothing costs more than a load where
// nobody listens.
class Announcer {
 public:
  explicit Announcer(const CheckpointOptions& options);
  using Event = void (EventListener::*)(const RegionInfo&) noexcept;
  void tell(Event event) const {
    if (listener_) (listener_.get()->*event)(*info_);
  }
  void forward_begins(const Tensors& inputs) const {
    if (listener_) listener_->forward_begins(*info_, inputs);
  }
  void saved(const at::Tensor& t) const {
    if (listener_) listener_->saved(*info_, t);
  }
  // Before an unpack: backward_begins for the first of each backward.
  void unpacks();

 private:
  std::shared_ptr<EventListener> listener_;
  std::unique_ptr<const RegionInfo> info_;
  std::atomic<int> backward_{-1};  // the last one announced
};

// A tensor kept from forward to backward.
class SavedInput {
 public:
  explicit SavedInput(const at::Tensor& t);
  // Throws where it was modified since.
  void check(const std::string& region, std::size_t index) const;
  // The tensor's data.
  at::Tensor data();

 private:
  std::optional<Version> version_;
  std::unique_ptr<torch_private::SavedVariableHooks> hooks_;
  at::Tensor data_;
};

class LibTorchFramework : public FrameworkDefaults {
 public:
  using Tensor = at::Tensor;

  struct Record {
    Shape shape;
    Version version;
    // For a tensor without history: its storage, not its data. The same storage again in the
    // recompute belongs to something that was there before the region: an input, a parameter, a
    // buffer.
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  };

  struct Held {
    at::Tensor data;
    std::optional<Version> version;
  };

  LibTorchFramework(Region& region, Forward forward, const Tensors& inputs,
                    const CheckpointOptions& options);
  ~LibTorchFramework() { announcer_.tell(&EventListener::released); }

  Record describe(const at::Tensor& t) const;
  std::string changed(const Record& record) const;
  void check_inputs() const;
  std::string mismatch(const Record& record, const at::Tensor& t) const;
  bool may_stop_after(const Record& record, const at::Tensor& t) const;
  using Operation = std::uint64_t;
  Operation operation() const { return torch_private::next_node_number(); }
  Held hold(Record& record, const at::Tensor& t) const;
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
  const Forward& forward() const { return forward_; }
  RecomputeState& state() { return state_; }
  Announcer& announcer() { return announcer_; }
  // Makes the current stream of each device wait for the last recompute, where that ran on another.
  void wait_for_recompute(const at::Tensor& t) const;

 private:
  struct Done {
    c10::Stream stream;
    std::shared_ptr<c10::Event> event;
  };
  Tensors inputs_again();
  void streams_wait_for_current(const Tensors& leaves);

  Region& region_;
  Forward forward_;
  CheckpointOptions options_;
  Announcer announcer_;
  RecomputeState state_;
  std::vector<SavedInput> inputs_;   // or what pack_inputs() made of them
  std::vector<bool> requires_grad_;  // of each of the forward's inputs
  std::vector<Done> recompute_done_;
};

// One run of a checkpointed forward, waiting for its backward.
class Region : public Recompute<LibTorchFramework>, public std::enable_shared_from_this<Region> {
 public:
  Region(Forward forward, const Tensors& inputs, const CheckpointOptions& options)
      : Recompute(options.early_stop, *this, std::move(forward), inputs, options) {}
};

}  // namespace recoup
