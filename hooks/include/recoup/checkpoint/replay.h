// The framework-independent half of an activation checkpoint: slots for the tensors that autograd
// would have saved, one recompute per backward to refill them, early stop, and the check that the
// recompute saved what the forward did. A framework supplies a Host (below); LibTorch's is in
// hooks/checkpoint, InfiniTrain's in patches/infinitrain.
//
// Life of a region:
//   forward    each saved tensor's pack hook calls record(), which keeps a description, no data
//   backward   the first unpack hook calls take(), which finds its slot empty and reruns the
//              forward; pack hooks now call refill() until every slot still wanted is full, then
//              EarlyStop is thrown out of the forward; later unpacks find their slots full
//   release    a saved tensor that autograd drops calls release(); the last one frees the region
#pragma once

#include <cstddef>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace recoup {

// Thrown through the forward to end a recompute. Not a std::exception, so that a forward which
// handles errors does not take it for one.
struct EarlyStop {
  const void* replay;  // whose recompute ends
};

// What is wrong with a region's recompute: names the region and the tensor.
class ReplayError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Host requirements:
//   Tensor                                 the framework's tensor handle
//   Record                                 what the forward remembers of a saved tensor
//   Held                                   a refilled tensor; default-constructed: none
//   Record describe(const Tensor&)         during the forward
//   std::string changed(const Record&)     why the forward's tensor is no longer what it was (it
//                                          was modified in place), or empty
//   std::string mismatch(const Record&, const Tensor&)   how a recomputed tensor differs, or empty
//   bool leavable(const Record&, const Tensor&)   whether the operation that saves this tensor may
//                                          be left at once: the tensor's content is final, and the
//                                          operation survives an exception
//   Operation operation()                  a value that differs between the operations that save
//   Held hold(const Tensor&)               during the recompute
//   bool read(const Held&, Tensor*, std::string* problem)   gives the tensor to autograd; false
//                                          where none is held; `problem` where it was modified
//   const void* reader()                   which node of the graph reads now; it may read again
//   void rerun()                           runs the forward with pack hooks that call refill()
//   [[noreturn]] void stop(const void* replay)      throws EarlyStop in the framework's way
//   bool stopped_by(const void* replay)    in a catch (...): whether it was that
//   std::unique_lock<std::mutex> lock(std::mutex&)  for the recompute's long mutex
//   std::string name()                     the region's name, for errors
template <class Host>
class Replay {
 public:
  using Tensor = typename Host::Tensor;

  template <class... Args>
  explicit Replay(bool early_stop, Args&&... args)
      : host_(std::forward<Args>(args)...), early_stop_(early_stop) {
    slots_.reserve(
        6);  // an MLP's: the inputs and weights of fc1 and fc2, and the activation's input
  }

  Host& host() { return host_; }

  // Forward: a new slot for a tensor that autograd saves. The data is not kept.
  std::size_t record(const Tensor& tensor) {
    auto description = host_.describe(tensor);
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    slots_.push_back({std::move(description), {}, true});
    return slots_.size() - 1;
  }

  // Backward: the tensor of a slot, recomputed if need be. Any thread.
  Tensor take(std::size_t index) {
    const auto recomputing = host_.lock(recompute_mutex_);
    if (const auto why = host_.changed(slots_[index].record); !why.empty()) fail(index, why);
    Tensor tensor;
    if (!read(index, &tensor)) {
      recompute();
      if (!read(index, &tensor)) fail(index, "the recompute did not save it again");
    }
    return tensor;
  }

  // Backward: autograd has dropped the slot's saved tensor. Any thread, also during a recompute.
  void release(std::size_t index) {
    Held freed;  // after the lock
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    slots_[index].wanted = false;
    std::swap(freed, slots_[index].held);
  }

  // End of a backward: frees what was refilled and is still there (the graph is retained, or only
  // a part of it ran). Does nothing where another thread is recomputing.
  void forget() {
    const std::unique_lock<std::mutex> recomputing(recompute_mutex_, std::try_to_lock);
    if (recomputing) forget_all();
  }

  // Forward: it has returned.
  void seal() { sealed_ = true; }

  // Recompute: whether the slot is the last one wanted, or beyond it.
  bool is_last(std::size_t index) const { return index + 1 >= end_; }

  // Recompute: the forward saves its next tensor. Throws EarlyStop where all that is wanted is in.
  void refill(const Tensor& tensor) {
    if (!problem_.empty()) {
      // Only the way out is left.
    } else if (cursor_ < slots_.size()) {
      Slot& slot = slots_[cursor_];
      problem_ = host_.mismatch(slot.record, tensor);
      if (!problem_.empty() || !host_.leavable(slot.record, tensor)) busy_ = host_.operation();
      const std::lock_guard<std::mutex> guard(slots_mutex_);
      if (slot.wanted) slot.held = host_.hold(tensor);
    } else if (sealed_ && cursor_ >= end_ && !early_stop_) {
      problem_ =
          "the recompute saves more tensors than the forward's " + std::to_string(slots_.size());
    }
    if (problem_.empty()) ++cursor_;
    // An operation saves some tensors before its kernel runs. Where one of them may be a buffer
    // that the kernel fills, the recompute goes on until another operation saves.
    const bool free = !busy_ || *busy_ != host_.operation();
    const bool done = cursor_ >= end_ && (early_stop_ || !sealed_);
    if (free && (done || !problem_.empty())) host_.stop(this);
  }

 private:
  using Held = typename Host::Held;
  struct Slot {
    typename Host::Record record;
    Held held;
    bool wanted;  // autograd still has the saved tensor
  };

  // A node may read a slot several times (a custom function asks for all its tensors for each one),
  // so what it read is kept until the next node reads.
  bool read(std::size_t index, Tensor* tensor) {
    std::vector<Held> freed;  // after the lock
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    if (const void* reader = host_.reader(); reader != reader_) {
      for (const auto i : read_) freed.push_back(std::exchange(slots_[i].held, {}));
      read_.clear();
      reader_ = reader;
    }
    std::string problem;
    const bool there = host_.read(slots_[index].held, tensor, &problem);
    if (!problem.empty()) fail(index, problem);
    if (there) read_.push_back(index);
    return there;
  }

  void recompute() {
    {
      const std::lock_guard<std::mutex> guard(slots_mutex_);
      cursor_ = 0;
      busy_.reset();
      problem_.clear();
      end_ = slots_.size();
      while (end_ > 0 && !slots_[end_ - 1].wanted) --end_;
    }
    try {
      host_.rerun();
    } catch (...) {
      if (!host_.stopped_by(this) && problem_.empty()) {
        forget_all();  // nothing half-recomputed outlives the error
        throw;
      }
    }
    if (problem_.empty() && cursor_ < end_) {
      problem_ = "the recompute saves only " + std::to_string(cursor_) + " tensors, the forward " +
                 std::to_string(slots_.size());
    }
    if (!problem_.empty()) {
      forget_all();
      fail(cursor_, problem_);
    }
  }

  void forget_all() {
    std::vector<Held> freed;  // after the lock
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    for (auto& slot : slots_) freed.push_back(std::exchange(slot.held, {}));
    read_.clear();
  }

  [[noreturn]] void fail(std::size_t index, const std::string& why) {
    throw ReplayError("recoup: " + host_.name() + ": saved tensor " + std::to_string(index) + ": " +
                      why);
  }

  Host host_;
  const bool early_stop_;
  std::mutex recompute_mutex_;  // held for a whole recompute
  std::mutex slots_mutex_;      // held for moments: guards slots_, read_ and reader_
  std::vector<Slot> slots_;
  std::vector<std::size_t> read_;  // the slots that reader_ has read
  const void* reader_ = nullptr;
  // Of the recompute under way, in its thread only: the next slot, and the one past the last
  // wanted.
  std::size_t cursor_ = 0, end_ = 0;
  // The last operation that must finish before the recompute may be left.
  std::optional<typename Host::Operation> busy_;
  // Why the recompute is wrong; raised once the forward has been left in good order.
  std::string problem_;
  // Until the forward has returned (it runs a backward itself) its slots are not all there yet.
  bool sealed_ = false;
};

}  // namespace recoup
