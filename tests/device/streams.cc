#include "streams.h"

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace testdev {
namespace {

std::atomic<std::uint64_t> delay_seed{0};
std::atomic<int> longest_delay{0};

class Queue {
 public:
  explicit Queue(std::uint64_t number) : number_(number) {
    std::thread([this] { work(); }).detach();
  }

  void push(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      tasks_.push_back(std::move(task));
    }
    more_.notify_one();
  }

 private:
  [[noreturn]] void work() {
    std::mt19937_64 random;
    std::uint64_t seed = 0;
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      more_.wait(lock, [this] { return !tasks_.empty(); });
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      if (const int longest = longest_delay; longest > 0) {
        if (seed != delay_seed) random.seed((seed = delay_seed) * 1000003 + number_);
        std::this_thread::sleep_for(std::chrono::microseconds(random() % (longest + 1)));
      }
      try {
        task();
      } catch (const std::exception& e) {  // as on a real device: nobody is there to catch it
        std::fprintf(stderr, "test device: a kernel failed: %s\n", e.what());
        std::abort();
      }
    }
  }

  const std::uint64_t number_;
  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<std::function<void()>> tasks_;
};

struct Queues {
  std::mutex mutex;
  std::map<std::pair<c10::DeviceIndex, c10::StreamId>, Queue*> all;
};

// Never freed: threads work until the process ends.
Queues& queues() {
  static auto* const all = new Queues();
  return *all;
}

Queue& queue_of(const c10::Stream& stream) {
  auto& [mutex, all] = queues();
  const std::lock_guard<std::mutex> guard(mutex);
  auto& queue = all[{stream.device_index(), stream.id()}];
  if (queue == nullptr) queue = new Queue(all.size());
  return *queue;
}

c10::Stream stream_of(c10::DeviceIndex device, c10::StreamId id) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kPrivateUse1, device), id);
}

thread_local c10::DeviceIndex device_now = 0;
thread_local std::array<c10::StreamId, kDevices> streams_now{};

}  // namespace

struct Marker::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool set = false;
};

std::shared_ptr<Marker::State> Marker::make() { return std::make_shared<State>(); }

void Marker::set() {
  const std::lock_guard<std::mutex> guard(state_->mutex);
  state_->set = true;
  state_->changed.notify_all();
}

bool Marker::is_set() const {
  const std::lock_guard<std::mutex> guard(state_->mutex);
  return state_->set;
}

void Marker::wait() const {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->set; });
}

void enqueue(const c10::Stream& stream, std::function<void()> task) {
  queue_of(stream).push(std::move(task));
}

Marker mark(const c10::Stream& stream) {
  Marker marker;
  enqueue(stream, [marker]() mutable { marker.set(); });
  return marker;
}

void synchronize(const c10::Stream& stream) { mark(stream).wait(); }

void synchronize_all() {
  std::vector<c10::Stream> streams;
  {
    auto& [mutex, all] = queues();
    const std::lock_guard<std::mutex> guard(mutex);
    for (const auto& entry : all)
      streams.push_back(stream_of(entry.first.first, entry.first.second));
  }
  for (const auto& stream : streams) synchronize(stream);
}

c10::Stream default_stream(c10::DeviceIndex device) { return stream_of(device, 0); }

c10::Stream current_stream(c10::DeviceIndex device) {
  return stream_of(device, streams_now.at(device));
}

c10::Stream exchange_stream(const c10::Stream& stream) {
  const auto before = current_stream(stream.device_index());
  streams_now.at(stream.device_index()) = stream.id();
  return before;
}

c10::Stream new_stream(c10::DeviceIndex device) {
  static std::atomic<c10::StreamId> next{1};
  return stream_of(device, next++);
}

c10::DeviceIndex current_device() { return device_now; }

c10::DeviceIndex exchange_device(c10::DeviceIndex device) {
  return std::exchange(device_now, device);
}

void set_delays(std::uint64_t seed, int microseconds) {
  delay_seed = seed;
  longest_delay = microseconds;
}

}  // namespace testdev
