#include "rng.h"

#include <c10/core/DeviceGuard.h>

#include <cstring>
#include <map>

namespace recoup {
namespace {

using Guard = std::lock_guard<std::mutex>;
// CUDA refuses a generator's state while the current device is under capture, whichever it belongs
// to.
using OnItsDevice = c10::OptionalDeviceGuard;

// By value: a generator is a handle, and its mutex belongs to what it points to.
std::mutex& mutex_of(at::Generator generator) { return generator.mutex(); }

at::CPUGeneratorImpl* cpu_impl(const at::Generator& g) {
  return static_cast<at::CPUGeneratorImpl*>(g.unsafeGetGeneratorImpl());
}

// One mutex for each generator; entries are never removed.
std::recursive_mutex& exclusive_to(const at::Generator& generator) {
  static std::mutex guard;
  static auto* mutexes = new std::map<const c10::GeneratorImpl*, std::recursive_mutex>();
  const std::lock_guard<std::mutex> lock(guard);
  return (*mutexes)[generator.unsafeGetGeneratorImpl()];
}

}  // namespace

// In place: 2.5 KB are copied once.
RngState::Cpu::Cpu(at::CPUGeneratorImpl& impl)
    : engine(impl.engine()),
      next_float(impl.next_float_normal_sample()),
      next_double(impl.next_double_normal_sample()) {}

bool RngState::Cpu::operator==(const Cpu& other) const {
  // Bytes: the engine gives its state as copies only. What it pads with is copied with it.
  return std::memcmp(static_cast<const void*>(&engine), &other.engine, sizeof(engine)) == 0 &&
         next_float == other.next_float && next_double == other.next_double;
}

RngState::RngState(const at::Generator& generator) : generator_(generator) {
  const Guard guard(mutex_of(generator));
  if (generator.device().is_cpu()) {
    cpu_.emplace(*cpu_impl(generator));
  } else if (cuda_rng::capturing(generator)) {
    captured_ = cuda_rng::save(generator);
  } else {
    const OnItsDevice guard(generator.device());
    bytes_ = generator.get_state();
  }
}

bool RngState::drawn_since() const {
  if (captured_.defined()) {
    const Guard guard(mutex_of(generator_));
    return cuda_rng::drawn_since(generator_, captured_);
  }
  if (!cpu_) {
    const Guard guard(mutex_of(generator_));
    const OnItsDevice device(generator_.device());
    const auto now = generator_.get_state();
    return now.nbytes() != bytes_.nbytes() ||
           std::memcmp(now.const_data_ptr(), bytes_.const_data_ptr(), now.nbytes()) != 0;
  }
  const Guard guard(mutex_of(generator_));
  return !(*cpu_ == Cpu(*cpu_impl(generator_)));
}

void RngState::restore() const {
  const Guard guard(mutex_of(generator_));
  if (cpu_) {
    auto* impl = cpu_impl(generator_);
    impl->set_engine(cpu_->engine);
    impl->set_next_float_normal_sample(cpu_->next_float);
    impl->set_next_double_normal_sample(cpu_->next_double);
  } else if (captured_.defined()) {
    cuda_rng::restore(generator_, captured_);
  } else {
    const OnItsDevice device(generator_.device());
    at::Generator generator = generator_;
    generator.set_state(bytes_);
  }
}

ScopedRng::ScopedRng(const RngState& state)
    : exclusive_(exclusive_to(state.generator())), before_(state.generator()) {
  if (cuda_rng::capturing(state.generator())) {
    captured_before_ = state.generator().graphsafe_get_state();
  }
  state.restore();
}

ScopedRng::~ScopedRng() {
  if (captured_before_.defined()) {
    at::Generator generator = before_.generator();
    generator.graphsafe_set_state(captured_before_);
  } else {
    before_.restore();
  }
}

}  // namespace recoup
