// The test device's streams: each is a thread with a queue, so that work that nobody waits for is
// really late. Random delays before each task make every order that the waits allow come up.
#pragma once

#include <c10/core/Stream.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace testdev {

inline constexpr c10::DeviceIndex kDevices = 2;

// A point in a stream's work: set once the work before it is done.
class Marker {
 public:
  void set();
  bool is_set() const;
  void wait() const;

 private:
  struct State;
  std::shared_ptr<State> state_ = make();
  static std::shared_ptr<State> make();
};

// Appends `task` to the stream's work and returns at once.
void enqueue(const c10::Stream& stream, std::function<void()> task);

// A marker behind all work that the stream has now.
Marker mark(const c10::Stream& stream);

void synchronize(const c10::Stream& stream);
void synchronize_all();

c10::Stream default_stream(c10::DeviceIndex device);
c10::Stream current_stream(c10::DeviceIndex device);
c10::Stream exchange_stream(const c10::Stream& stream);
c10::Stream new_stream(c10::DeviceIndex device);
c10::DeviceIndex current_device();
c10::DeviceIndex exchange_device(c10::DeviceIndex device);

// Each task waits up to `microseconds` before it runs, drawn from `seed`; 0: no delays.
void set_delays(std::uint64_t seed, int microseconds);

}  // namespace testdev
