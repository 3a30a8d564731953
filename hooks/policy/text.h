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

// `bytes` as a terminal and a C string can take them: control characters, marks that turn the
// direction of text, and what is no UTF-8 as \xNN or \u{NNNN}; an ellipsis after `characters` of
// them.
inline constexpr std::size_t kShownCharacters = 80;
std::string printable(std::string_view bytes, std::size_t characters = kShownCharacters);

// The same in quotation marks.
std::string quoted(std::string_view bytes);

// What is at the beginning of `utf8`: its bytes, and its code point where they are well-formed.
struct Character {
  std::size_t bytes;
  std::optional<std::uint32_t> code_point;
};
Character first_character(std::string_view utf8);

// The text of a file in UTF-8 without a byte order mark, which may say UTF-8, -16 or -32.
std::string to_utf8(std::string_view bytes);

}  // namespace recoup::text
