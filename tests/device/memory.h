// The test device's memory: bytes are counted, and what is freed, or not yet written, reads as
// poison (all bits set: NaN, -1, true).
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include <cstdint>

namespace testdev {

c10::Allocator* allocator();

// Bytes that were asked for and are not freed yet, as the host sees it.
std::int64_t bytes_now(c10::DeviceIndex device);
std::int64_t bytes_peak(c10::DeviceIndex device);
void reset_peak(c10::DeviceIndex device);

// The block is in use on `stream` too: once freed it is poisoned only after that stream's work
// until then.
void record_stream(const c10::DataPtr& data, const c10::Stream& stream);

}  // namespace testdev
