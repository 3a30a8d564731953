// Numbers and words of model files, strictly.
#pragma once

#include <cstdint>
#include <string>

#include "recoup/result.h"

namespace recoup::models {

// "must be an integer from 1 to ..., not "x"" where it is none.
Result<std::int64_t> to_integer(const std::string& text, std::int64_t least, std::int64_t most);
// A finite number: 9.89e14, 1e14, 0.1.
Result<double> to_number(const std::string& text, double least, double most);
Result<bool> to_bool(const std::string& text);

// Sizes beyond these are slips, and every product of them stays a finite double. The deepest model
// that anyone trains has some hundreds of layers.
inline constexpr std::int64_t kMostLayers = 1'000;
inline constexpr std::int64_t kMostSize = std::int64_t{1} << 32;

}  // namespace recoup::models
