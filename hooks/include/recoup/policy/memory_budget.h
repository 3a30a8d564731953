// The memory that a run may use, as the file says it.
#pragma once

#include <cstdint>
#include <string>

#include "recoup/result.h"

namespace recoup {

struct MemoryBudget {
  // kBytes: `bytes` of this rank's device memory. kFraction: `fraction` of what the device has.
  // kAuto: all that the device has.
  enum class Kind { kBytes, kFraction, kAuto };
  Kind kind = Kind::kAuto;
  std::int64_t bytes = 0;  // >= 1, kBytes only
  double fraction = 0;     // above 0, at most 1, kFraction only

  // `74GiB`, `1.5 TB`, a plain number of bytes, `90%` or `auto`. Units are those of 1000 (KB, MB,
  // GB, TB), those of 1024 (KiB, MiB, GiB, TiB) and B. The error says what is allowed.
  static Result<MemoryBudget> parse(const std::string& text);

  // "74.00 GiB", "90 %" or "auto".
  std::string text() const;
};

}  // namespace recoup
