// Bytes as people write them.
#pragma once

#include <cstdint>
#include <string>

namespace recoup::cli {

// A --budget as the policy reads recompute_memory_budget, in bytes: this program knows no device,
// so that 90% and auto are refused.
std::int64_t budget_bytes(const std::string& text);

// "73.81 GiB", "224.0 MiB", "512 B".
std::string show_bytes(double bytes);
// "8,030,261,248"
std::string show_count(std::int64_t n);

}  // namespace recoup::cli
