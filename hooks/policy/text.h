// Small text helpers of the policy's error messages and parsers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace recoup::text {

// A plain decimal integer with an optional sign: no blanks, no leading zeros, no fractions.
std::optional<std::int64_t> to_integer(std::string_view s);

std::string_view trim(std::string_view s);

std::vector<std::string> split(std::string_view s, char separator);

// "a, b or c"
std::string one_of(const std::vector<std::string>& words);

// `; did you mean "x"?` for the closest of `allowed`, or nothing where none is close.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& allowed);

}  // namespace recoup::text
