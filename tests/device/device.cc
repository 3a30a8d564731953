#include "device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>

namespace testdev {
namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;

class Generator final : public c10::GeneratorImpl {
 public:
  explicit Generator(c10::DeviceIndex index,
                     std::uint64_t seed = c10::detail::getNonDeterministicRandom())
      : GeneratorImpl(testdev::device(index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        cpu(at::make_generator<at::CPUGeneratorImpl>(seed)) {}

  void set_current_seed(std::uint64_t seed) override { cpu.set_current_seed(seed); }
  void set_offset(std::uint64_t) override { TORCH_CHECK(false, "test device: no offsets"); }
  std::uint64_t get_offset() const override { TORCH_CHECK(false, "test device: no offsets"); }
  std::uint64_t current_seed() const override { return cpu.current_seed(); }
  std::uint64_t seed() override { return cpu.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    cpu.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }

  at::Generator cpu;

 private:
  GeneratorImpl* clone_impl() const override {
    auto* copy = new Generator(device_.index());
    copy->set_state(*get_state());
    return copy;
  }
};

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return default_generator(index < 0 ? current_device() : index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<Generator>(index < 0 ? current_device() : index);
  }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(c10::DeviceIndex index) const override { exchange_device(index); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return exchange_device(index);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchange_device(index);
  }
  at::Device getDeviceFromPtr(void*) const override { return device(current_device()); }
};

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device to) const override {
    return device(exchange_device(to.index()));
  }
  c10::Device getDevice() const override { return device(current_device()); }
  void setDevice(c10::Device to) const override { exchange_device(to.index()); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { exchange_device(to.index()); }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }

  c10::Stream getStream(c10::Device of) const override { return current_stream(index_of(of)); }
  c10::Stream getDefaultStream(c10::Device of) const override {
    return default_stream(index_of(of));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device of, bool) const override {
    return new_stream(index_of(of));
  }
  c10::Stream getNewStream(c10::Device of, int) const override { return new_stream(index_of(of)); }
  c10::Stream exchangeStream(c10::Stream to) const override { return exchange_stream(to); }
  bool queryStream(const c10::Stream& stream) const override { return mark(stream).is_set(); }
  void synchronizeStream(const c10::Stream& stream) const override { synchronize(stream); }
  void synchronizeDevice(c10::DeviceIndex) const override { synchronize_all(); }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex,
              c10::EventFlag) const override {
    destroyEvent(*event, 0);
    *event = new Marker(mark(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event != nullptr)
      enqueue(stream, [marker = *static_cast<Marker*>(event)] { marker.wait(); });
  }
  bool queryEvent(void* event) const override {
    return event == nullptr || static_cast<Marker*>(event)->is_set();
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) static_cast<Marker*>(event)->wait();
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<Marker*>(event);
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    record_stream(data, stream);
  }

 private:
  static c10::DeviceIndex index_of(c10::Device of) {
    return of.has_index() ? of.index() : current_device();
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

[[maybe_unused]] const bool registered = [] {
  static Hooks hooks;
  c10::register_privateuse1_backend("testdev");
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::SetAllocator(kType, allocator());
  return true;
}();

}  // namespace

const at::Generator& default_generator(c10::DeviceIndex index) {
  static auto* const all = new std::array<at::Generator, kDevices>{
      at::make_generator<Generator>(0, c10::default_rng_seed_val),
      at::make_generator<Generator>(1, c10::default_rng_seed_val)};
  return all->at(index);
}

at::Generator cpu_generator(const at::Generator& generator) {
  return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->cpu;
}

}  // namespace testdev
