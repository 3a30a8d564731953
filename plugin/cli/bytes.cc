#include "bytes.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace recoup::cli {

Result<std::int64_t> parse_bytes(const std::string& text) {
  const auto wrong = [&] {
    return Error{"\"" + text.substr(0, 40) +
                 "\" is no number of bytes: allowed are 12GiB, 1.5TiB, 500MB or 1048576"};
  };
  const auto digits = text.find_first_not_of("0123456789.");
  const auto number_text = text.substr(0, digits);
  const auto unit = digits == std::string::npos ? std::string() : text.substr(digits);
  char* end = nullptr;
  const double number = std::strtod(number_text.c_str(), &end);
  if (number_text.empty() || *end != '\0') return wrong();
  double factor = 1;
  if (!unit.empty() && unit != "B") {
    const auto power = std::string("KMGT").find(unit[0]);
    const auto rest = unit.substr(1);
    if (power == std::string::npos || (rest != "B" && rest != "iB" && rest != "" && rest != "i")) {
      return wrong();
    }
    factor = std::pow(rest[0] == 'i' ? 1024.0 : 1000.0, static_cast<double>(power + 1));
  }
  const double bytes = number * factor;
  if (!std::isfinite(bytes) || bytes < 1 || bytes > 1e15) return wrong();
  return static_cast<std::int64_t>(bytes);
}

std::string show_bytes(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t u = 0;
  double n = bytes;
  while (std::abs(n) >= 1024 && u < 4) n /= 1024, ++u;
  char text[48];
  std::snprintf(text, sizeof text, u == 0 ? "%.0f %s" : u < 3 ? "%.1f %s" : "%.2f %s", n, units[u]);
  return text;
}

std::string show_count(std::int64_t n) {
  auto text = std::to_string(n);
  for (auto at = static_cast<std::int64_t>(text.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3) {
    text.insert(static_cast<std::size_t>(at), ",");
  }
  return text;
}

}  // namespace recoup::cli
