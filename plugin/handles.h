// What a host holds of a plugin: a number in a pointer's clothes, so that any value at all can be
// checked without following it. A handle of another library, a finalized one and plain garbage are
// told apart from a live one in a few nanoseconds.
//
//   bit 63       set: no address that a program can have
//   bits 32-62   this copy of the library
//   bits 16-31   how often the slot has been used
//   bits 0-15    the slot
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace recoup {

template <class T>
class Handles {
  struct Slot;

 public:
  static constexpr std::uint32_t kSlots = 4096;

  // A live object, which stays while this does, also where another thread closes it.
  class Pin {
   public:
    Pin(Handles& handles, const void* handle) : handles_(handles), slot_(handles.pin(handle)) {}
    ~Pin() {
      if (slot_ != nullptr) handles_.unpin(*slot_);
    }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    explicit operator bool() const { return slot_ != nullptr; }
    T& operator*() const { return *slot_->object; }
    T* operator->() const { return slot_->object; }

   private:
    friend class Handles;
    Handles& handles_;
    Slot* slot_;
  };

  Handles() {
    // The address of the table tells apart the libraries of one process.
    tag_ = (reinterpret_cast<std::uintptr_t>(this) >> 4) & 0x7fffffff;
    for (std::uint32_t i = kSlots; i-- > 0;) free_.push_back(i);
  }

  // Null where all slots are in use.
  void* open(std::unique_ptr<T> object) {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (free_.empty()) return nullptr;
    const auto index = free_.back();
    free_.pop_back();
    auto& slot = slots_[index];
    slot.object = object.release();
    const auto generation = slot.state.load(std::memory_order_relaxed) >> kGenerationShift;
    slot.state.fetch_or(kOpen | kOccupied, std::memory_order_release);
    return reinterpret_cast<void*>(std::uintptr_t{1} << 63 | tag_ << 32 |
                                   (generation & 0xffff) << 16 | index);
  }

  // Nothing can be pinned any more; the object goes with its last Pin. False where it was closed
  // already or is none of this library's.
  bool close(const void* handle) {
    const Pin pin(*this, handle);
    if (!pin) return false;
    return (pin.slot_->state.fetch_and(~kOpen, std::memory_order_acq_rel) & kOpen) != 0;
  }

  // Why a handle that cannot be pinned cannot be.
  std::string problem(const void* handle) const {
    if (handle == nullptr) return "the plugin is null";
    return ours(handle) ? "this plugin was closed already"
                        : "this is no plugin of this library; what init() of one library gave goes "
                          "to no other's functions";
  }

 private:
  // generation (32 bits), occupied, open, pins (30 bits)
  static constexpr int kGenerationShift = 32;
  static constexpr std::uint64_t kOccupied = std::uint64_t{1} << 31;
  static constexpr std::uint64_t kOpen = std::uint64_t{1} << 30;
  static constexpr std::uint64_t kPins = kOpen - 1;

  struct Slot {
    std::atomic<std::uint64_t> state{0};
    T* object = nullptr;
  };

  bool ours(const void* handle) const {
    const auto value = reinterpret_cast<std::uintptr_t>(handle);
    return value >> 32 == (std::uintptr_t{1} << 31 | tag_) && (value & 0xffff) < kSlots;
  }

  Slot* pin(const void* handle) {
    if (!ours(handle)) return nullptr;
    const auto value = reinterpret_cast<std::uintptr_t>(handle);
    auto& slot = slots_[value & 0xffff];
    const auto state = slot.state.fetch_add(1, std::memory_order_acquire);
    if ((state & kOpen) != 0 && (state >> kGenerationShift & 0xffff) == (value >> 16 & 0xffff)) {
      return &slot;
    }
    unpin(slot);
    return nullptr;
  }

  void unpin(Slot& slot) {
    auto state = slot.state.fetch_sub(1, std::memory_order_acq_rel) - 1;
    // The last one out of a closed slot frees it. A late pin() of a stale handle may come between;
    // then that one's unpin() does.
    while ((state & kOccupied) != 0 && (state & (kOpen | kPins)) == 0) {
      const auto next = (state >> kGenerationShift) + 1;
      if (!slot.state.compare_exchange_weak(state, next << kGenerationShift,
                                            std::memory_order_acq_rel)) {
        continue;
      }
      delete slot.object;  // before open() can have the slot
      const std::lock_guard<std::mutex> guard(mutex_);
      free_.push_back(static_cast<std::uint32_t>(&slot - slots_));
      return;
    }
  }

  std::uintptr_t tag_;
  Slot slots_[kSlots];
  std::mutex mutex_;  // guards free_
  std::vector<std::uint32_t> free_;
};

}  // namespace recoup
