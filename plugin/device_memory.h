// What LibTorch's allocator says of this process's accelerator.
#pragma once

#include <optional>

#include "engine_seam.h"

namespace recoup {

std::optional<DeviceMemory> device_memory(const Settings& settings);

}  // namespace recoup
