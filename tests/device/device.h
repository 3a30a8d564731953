// A device for tests: LibTorch's PrivateUse1 as a device with memory of its own, streams that are
// threads, events, two device indices and a generator. What a real GPU does late this device does
// late too, so that a missing wait shows as a wrong number. Linking it registers it.
//
// Numbers equal the CPU's to the bit: each kernel is the CPU's own, run on the stream's thread.
// Random numbers are drawn when a kernel is launched, from a generator with the CPU's algorithm.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Device.h>

#include "memory.h"
#include "streams.h"

namespace testdev {

inline c10::Device device(c10::DeviceIndex index = 0) { return {c10::kPrivateUse1, index}; }

const at::Generator& default_generator(c10::DeviceIndex index);

// The CPU generator inside one of this device's, which kernels draw from under its mutex.
at::Generator cpu_generator(const at::Generator& generator);

}  // namespace testdev
