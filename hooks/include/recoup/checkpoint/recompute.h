// The framework-independent half of an activation checkpoint: slots for the tensors that autograd
// would have saved, one recompute per backward to refill them, early stop, and the check that the
// recompute saved what the forward did. A framework supplies a Framework (see framework.h);
// LibTorch's is in hooks/checkpoint, InfiniTrain's in patches/infinitrain.
//
// Life of a region:
//   forward    each saved tensor's pack hook calls record(), which keeps a description, no data;
//              forward_done() when it has returned
//   backward   the first unpack hook calls take(), which finds its slot empty and recomputes; pack
//              hooks now call refill() until every slot still wanted is full, then StopRecompute is
//              thrown out of the forward; later unpacks find their slots full
//   release    a saved tensor that autograd drops calls release(); the last one frees the region
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "recoup/checkpoint/framework.h"

namespace recoup {

template <class Framework>
class Recompute {
 public:
  using Tensor = typename Framework::Tensor;

  template <class... Args>
  explicit Recompute(bool early_stop, Args&&... args)
      : framework_(std::forward<Args>(args)...), early_stop_(early_stop) {
    slots_.reserve(
        6);  // an MLP's: the inputs and weights of fc1 and fc2, and the activation's input
  }

  Framework& framework() { return framework_; }

  // Forward: a new slot for a tensor that autograd saves. The data is not kept.
  std::size_t record(const Tensor& tensor) {
    auto description = framework_.describe(tensor);
    std::optional<Held> kept = framework_.keep(description, tensor);
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    slots_.push_back({std::move(description), {}, true, false});
    if (kept) slots_.back().held = std::move(*kept), slots_.back().kept = true;
    return slots_.size() - 1;
  }

  bool is_kept(std::size_t index) const { return slots_[index].kept; }
  // Forward: what keep() did not know yet.
  void keep(std::size_t index, typename Framework::Held held) {
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    slots_[index].held = std::move(held);
    slots_[index].kept = true;
  }

  // Forward: the slots from `first` on are of a part that is never run again. A recompute runs what
  // comes before it to its end, without an exception, and the framework then fills the others with
  // fill().
  void rest_from(std::size_t first) { rest_ = first; }
  std::size_t size() const { return slots_.size(); }
  // `tensor` is the caller's own, without history.
  void fill(std::size_t index, const Tensor& tensor) {
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    if (slots_[index].wanted) slots_[index].held = framework_.hold(tensor, tensor);
  }

  // Backward: the tensor of a slot, recomputed if need be. Any thread.
  Tensor take(std::size_t index) {
    const auto recomputing = framework_.lock(recompute_mutex_);
    Tensor tensor;
    if (!read(index, &tensor)) {
      // Of all slots, and only now: a forward may itself refill a buffer that it then saves.
      fail_if_changed();
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
  void clear_held() {
    const std::unique_lock<std::mutex> recomputing(recompute_mutex_, std::try_to_lock);
    if (recomputing) clear_all_held();
  }

  // Frees what `reader` has read, since no node but the one that reads now reads again.
  void clear_read_by(const void* reader) {
    std::vector<Held> freed;  // after the lock
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    if (reader == reader_) take_read(&freed);
  }

  // Forward: it has returned.
  void forward_done() { forward_done_ = true; }

  // Recompute: whether the slot is the last one wanted, or beyond it.
  bool is_last(std::size_t index) const { return index + 1 >= end_; }

  // Recompute: the forward saves its next tensor. Throws StopRecompute where all that is wanted is
  // in.
  // `between_operations`: the tensor is not saved by an operation, and all operations have
  // finished. `data`: what hold() takes besides.
  template <class... Data>
  void refill(const Tensor& tensor, bool between_operations = false, const Data&... data) {
    if (!error_.empty()) {
      // Only the way out is left.
    } else if (cursor_ < std::min(slots_.size(), rest_)) {
      Slot& slot = slots_[cursor_];
      error_ = framework_.mismatch(slot.record, tensor);
      if (error_.empty() && slot.kept) {
        error_ = framework_.kept_mismatch(copy_of_held(cursor_), tensor);
      }
      if (between_operations) {
        pending_operation_.reset();
      } else if (!error_.empty() || !framework_.may_stop_after(slot.record, tensor)) {
        pending_operation_ = framework_.operation();
      }
      const std::lock_guard<std::mutex> guard(slots_mutex_);
      if (slot.wanted && !slot.kept) slot.held = framework_.hold(tensor, data...);
    } else if (cursor_ >= rest_ || (forward_done_ && cursor_ >= end_ && !early_stop_)) {
      error_ = "the recompute saves more tensors than the forward's " +
               std::to_string(std::min(slots_.size(), rest_));
    }
    if (error_.empty()) ++cursor_;
    // An operation saves some tensors before its kernel runs. Where one of them may be a buffer
    // that the kernel fills, the recompute goes on until another operation saves.
    const bool free = !pending_operation_ || *pending_operation_ != framework_.operation();
    const bool done = rest_ == kNoRest && cursor_ >= end_ && (early_stop_ || !forward_done_);
    if (free && (done || !error_.empty())) framework_.stop(this);
  }

 private:
  using Held = typename Framework::Held;
  struct Slot {
    typename Framework::Record record;
    Held held;
    bool wanted;  // autograd still has the saved tensor
    bool kept;    // `held` is the forward's, and stays until autograd drops the saved tensor
  };
  static constexpr std::size_t kNoRest = std::numeric_limits<std::size_t>::max();

  // A node may read a slot several times (a custom function asks for all its tensors for each one),
  // so what it read is kept until the next node reads.
  bool read(std::size_t index, Tensor* tensor) {
    std::vector<Held> freed;  // after the lock
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    if (const void* reader = framework_.reader(); reader != reader_) {
      take_read(&freed);
      reader_ = reader;
    }
    std::string error;
    const bool there = framework_.read(slots_[index].held, tensor, &error);
    if (!error.empty()) fail(index, error);
    if (there && !slots_[index].kept) read_.push_back(index);
    return there;
  }

  void take_read(std::vector<Held>* freed) {
    for (const auto i : read_) freed->push_back(std::exchange(slots_[i].held, {}));
    read_.clear();
  }

  void fail_if_changed() {
    framework_.check_inputs();
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (!slots_[i].wanted) continue;
      if (const auto why = framework_.changed(slots_[i].record); !why.empty()) fail(i, why);
    }
  }

  void recompute() {
    {
      const std::lock_guard<std::mutex> guard(slots_mutex_);
      cursor_ = 0;
      pending_operation_.reset();
      error_.clear();
      end_ = slots_.size();
      while (end_ > 0 && (!slots_[end_ - 1].wanted || slots_[end_ - 1].kept)) --end_;
    }
    try {
      const struct Refreshes {
        Recompute& region;
        ~Refreshes() {
          const std::lock_guard<std::mutex> guard(region.slots_mutex_);
          for (auto& slot : region.slots_) {
            region.framework_.refresh(slot.record, slot.kept ? &slot.held : nullptr);
          }
        }
      } refreshes{*this};
      framework_.recompute();
    } catch (const StopRecompute& stop) {  // as it is, where the forward is C++: the usual end
      if (stop.region != this && error_.empty()) {
        clear_all_held();
        throw;
      }
    } catch (...) {
      if (!framework_.stopped_by(this) && error_.empty()) {
        clear_all_held();  // nothing half-recomputed outlives the error
        throw;
      }
    }
    if (error_.empty() && cursor_ < std::min(end_, rest_)) {
      error_ = "the recompute saves only " + std::to_string(cursor_) + " tensors, the forward " +
               std::to_string(std::min(slots_.size(), rest_));
    }
    if (error_.empty() && framework_.checks_values()) compare_values();
    if (!error_.empty()) {
      clear_all_held();
      fail(cursor_, error_);
    }
  }

  // None where another thread has released it.
  Held copy_of_held(std::size_t index) {
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    return slots_[index].held;
  }

  void compare_values() {
    for (std::size_t i = 0; error_.empty() && i < end_; ++i) {
      if (slots_[i].kept) continue;
      error_ = framework_.values_mismatch(slots_[i].record, copy_of_held(i));
      if (!error_.empty()) cursor_ = i;
    }
  }

  void clear_all_held() {
    std::vector<Held> freed;  // after the lock
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    for (auto& slot : slots_) {
      if (!slot.kept) freed.push_back(std::exchange(slot.held, {}));
    }
    read_.clear();
  }

  [[noreturn]] void fail(std::size_t index, const std::string& why) {
    throw RecomputeError("recoup: " + framework_.name() + ": saved tensor " +
                         std::to_string(index) + ": " + why);
  }

  Framework framework_;
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
  std::optional<typename Framework::Operation> pending_operation_;
  // Why the recompute is wrong; raised once the forward has been left in good order.
  std::string error_;
  // The first slot of the part that is never run again.
  std::size_t rest_ = kNoRest;
  // Until the forward has returned (it runs a backward itself) its slots are not all there yet.
  bool forward_done_ = false;
};

}  // namespace recoup
