// Bytes as people write them.
#pragma once

#include <cstdint>
#include <string>

#include "recoup/result.h"

namespace recoup::cli {

// "12GiB", "500MB", "1048576": at least 1. An error says what is allowed.
Result<std::int64_t> parse_bytes(const std::string& text);

// "73.81 GiB", "224.0 MiB", "512 B".
std::string show_bytes(double bytes);
// "8,030,261,248"
std::string show_count(std::int64_t n);

}  // namespace recoup::cli
