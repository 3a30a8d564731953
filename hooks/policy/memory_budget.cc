#include "recoup/policy/memory_budget.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <limits>
#include <string_view>

#include "text.h"

namespace recoup {
namespace {

struct Unit {
  std::string_view name;
  std::int64_t bytes;
};
constexpr Unit kUnits[] = {{"B", 1},
                           {"KB", 1000},
                           {"MB", 1000 * 1000},
                           {"GB", 1000 * 1000 * 1000},
                           {"TB", 1000ll * 1000 * 1000 * 1000},
                           {"KiB", 1ll << 10},
                           {"MiB", 1ll << 20},
                           {"GiB", 1ll << 30},
                           {"TiB", 1ll << 40}};

std::vector<std::string> unit_names() {
  std::vector<std::string> names;
  for (const auto& unit : kUnits) names.emplace_back(unit.name);
  return names;
}

// Millionths, so that 1.1GiB is exact: "74" and "1.25" with up to six decimals.
std::optional<std::int64_t> millionths(std::string_view number) {
  const auto dot = number.find('.');
  const auto whole = text::to_integer(number.substr(0, dot));
  if (!whole || number[0] == '-' || number[0] == '+' || *whole > 1'000'000'000'000) return {};
  std::int64_t value = *whole;
  const auto decimals = dot == std::string_view::npos ? "" : number.substr(dot + 1);
  if (dot != std::string_view::npos && (decimals.empty() || decimals.size() > 6)) return {};
  for (std::size_t i = 0; i < 6; ++i) {
    const char digit = i < decimals.size() ? decimals[i] : '0';
    if (digit < '0' || digit > '9') return {};
    value = value * 10 + (digit - '0');
  }
  return value;
}

Error bad(const std::string& text) {
  return {
      "must be bytes (74GiB, 1.5TB or a plain number), a share of the device's memory (90%) or "
      "auto, not " +
      text::quoted(text)};
}

}  // namespace

Result<MemoryBudget> MemoryBudget::parse(const std::string& text) {
  MemoryBudget budget;
  if (text == "auto") return budget;
  const auto end = std::min(text.find_first_not_of("0123456789."), text.size());
  const auto number = std::string_view(text).substr(0, end);
  const auto unit = text::trim(std::string_view(text).substr(end));
  if (unit.empty() && end == text.size()) {  // bytes up to the largest there can be
    const auto bytes = text::to_integer(number);
    if (!bytes) return bad(text);
    if (*bytes < 1) return Error{"must be >= 1 byte, not " + text};
    budget.kind = Kind::kBytes;
    budget.bytes = *bytes;
    return budget;
  }
  const auto value = millionths(number);
  if (!value) return bad(text);
  if (unit == "%") {
    if (*value < 1 || *value > 100'000'000) {
      return Error{"must be above 0% and at most 100%, not " + text::quoted(text)};
    }
    budget.kind = Kind::kFraction;
    budget.fraction = static_cast<double>(*value) / 100e6;
    return budget;
  }
  for (const auto& known : kUnits) {
    if (unit != known.name) continue;
    const auto bytes = static_cast<__int128>(*value) * known.bytes / 1'000'000;
    if (bytes < 1 || bytes > std::numeric_limits<std::int64_t>::max()) {
      return Error{"must be from 1 byte to 8388607TiB, not " + text::quoted(text)};
    }
    budget.kind = Kind::kBytes;
    budget.bytes = static_cast<std::int64_t>(bytes);
    return budget;
  }
  return Error{text::quoted(unit) + " is no unit; allowed are " + text::one_of(unit_names()) +
               " and %" + text::did_you_mean(unit, unit_names())};
}

std::string MemoryBudget::text() const {
  char text[48];
  if (kind == Kind::kAuto) return "auto";
  if (kind == Kind::kFraction) {
    std::snprintf(text, sizeof text, "%g %%", fraction * 100);
    return text;
  }
  constexpr const char* kNames[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  double value = static_cast<double>(bytes);
  for (; value >= 1024 && unit + 1 < std::size(kNames); ++unit) value /= 1024;
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", value, kNames[unit]);
  return text;
}

}  // namespace recoup
