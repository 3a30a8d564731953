#include "bytes.h"

#include <cmath>
#include <cstdio>

#include "command.h"
#include "recoup/policy/memory_budget.h"

namespace recoup::cli {

std::int64_t budget_bytes(const std::string& text) {
  const auto parsed = MemoryBudget::parse(text);
  if (!parsed.ok()) throw Problem("--budget: " + parsed.error().text);
  if (parsed.value().kind != MemoryBudget::Kind::kBytes) {
    throw Problem("--budget: " + parsed.value().text() +
                  " is of a device, and there is none here; give bytes such as 74GiB");
  }
  return parsed.value().bytes;
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
