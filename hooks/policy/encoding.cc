// Characters: what a file's bytes mean, and which of them an error may print.
#include <cstdio>

#include "text.h"

namespace recoup::text {
namespace {

constexpr std::uint32_t kReplacement = 0xFFFD, kLastCodePoint = 0x10FFFF;

bool is_surrogate(std::uint32_t c) { return c >= 0xD800 && c <= 0xDFFF; }

void append_utf8(std::string& out, std::uint32_t c) {
  if (c > kLastCodePoint || is_surrogate(c)) c = kReplacement;
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  constexpr unsigned char kLead[] = {0, 0xC0, 0xE0, 0xF0};
  out += static_cast<char>(kLead[more] | (c >> (6 * more)));
  for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (c >> (6 * i) & 0x3F));
}

// `bytes` in units of `width` bytes (2: UTF-16, 4: UTF-32) as UTF-8.
std::string from_wide(std::string_view bytes, std::size_t width, bool little) {
  std::string out;
  std::uint32_t high = 0;  // the first half of a pair, 0 for none
  for (; !bytes.empty(); bytes.remove_prefix(std::min(width, bytes.size()))) {
    std::uint32_t c = 0;
    for (std::size_t i = 0; i < width && i < bytes.size(); ++i) {
      const auto byte = static_cast<unsigned char>(bytes[i]);
      c |= std::uint32_t{byte} << 8 * (little ? i : width - 1 - i);
    }
    const bool low = width == 2 && c >= 0xDC00 && c <= 0xDFFF;
    if (high != 0 && !low) append_utf8(out, kReplacement);
    if (high != 0 && low) c = 0x10000 + ((high - 0xD800) << 10) + (c - 0xDC00);
    high = width == 2 && c >= 0xD800 && c <= 0xDBFF ? c : 0;
    if (high == 0) append_utf8(out, bytes.size() < width ? kReplacement : c);
  }
  if (high != 0) append_utf8(out, kReplacement);
  return out;
}

// Whether printing it does something else than to show it.
bool is_unsafe(std::uint32_t c) {
  return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x061C || (c >= 0x200B && c <= 0x200F) ||
         (c >= 0x2028 && c <= 0x202E) || (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF;
}

}  // namespace

Character first_character(std::string_view utf8) {
  const auto byte = [&](std::size_t i) {
    return std::uint32_t{static_cast<unsigned char>(utf8[i])};
  };
  if (byte(0) < 0x80) return {1, byte(0)};
  const std::size_t size = byte(0) < 0xC2   ? 0
                           : byte(0) < 0xE0 ? 2
                           : byte(0) < 0xF0 ? 3
                           : byte(0) < 0xF5 ? 4
                                            : 0;
  if (size == 0 || utf8.size() < size) return {1, std::nullopt};
  std::uint32_t c = byte(0) & (0x7F >> size);
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {1, std::nullopt};
    c = c << 6 | (byte(i) & 0x3F);
  }
  constexpr std::uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (c < kLeast[size] || c > kLastCodePoint || is_surrogate(c)) return {1, std::nullopt};
  return {size, c};
}

std::string printable(std::string_view bytes, std::size_t characters) {
  std::string out;
  for (std::size_t shown = 0; !bytes.empty(); ++shown) {
    if (shown == characters) return out + "...";
    const auto c = first_character(bytes);
    char escaped[16];
    if (c.code_point == std::uint32_t{'\n'}) {
      out += "\\n";
    } else if (!c.code_point || (is_unsafe(*c.code_point) && *c.code_point < 0x80)) {
      std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned char>(bytes[0]));
      out += escaped;
    } else if (is_unsafe(*c.code_point)) {
      std::snprintf(escaped, sizeof escaped, "\\u{%x}", static_cast<unsigned>(*c.code_point));
      out += escaped;
    } else {
      out += bytes.substr(0, c.bytes);
    }
    bytes.remove_prefix(c.bytes);
  }
  return out;
}

std::string quoted(std::string_view bytes) { return "\"" + printable(bytes) + "\""; }

std::string to_utf8(std::string_view bytes) {
  using namespace std::string_view_literals;
  const auto begins = [&](std::string_view mark) { return bytes.substr(0, mark.size()) == mark; };
  if (begins("\xEF\xBB\xBF"sv)) return std::string(bytes.substr(3));
  // UTF-32's mark begins with UTF-16's.
  if (begins("\xFF\xFE\0\0"sv)) return from_wide(bytes.substr(4), 4, true);
  if (begins("\0\0\xFE\xFF"sv)) return from_wide(bytes.substr(4), 4, false);
  if (begins("\xFF\xFE"sv)) return from_wide(bytes.substr(2), 2, true);
  if (begins("\xFE\xFF"sv)) return from_wide(bytes.substr(2), 2, false);
  return std::string(bytes);
}

}  // namespace recoup::text
