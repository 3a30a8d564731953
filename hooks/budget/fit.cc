#include "recoup/budget/fit.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>

namespace recoup::budget {
namespace {

using Wide = __int128;
using Three = std::array<std::int64_t, 3>;

// The value at `at` of the parabola through (x, y), rounded up, and no less than 0.
std::int64_t parabola(const Three& x, const Three& y, std::int64_t at) {
  // Over the common denominator (x1 - x0)(x2 - x0)(x2 - x1) > 0.
  const Wide a = x[0], b = x[1], c = x[2], t = at;
  const Wide denominator = (b - a) * (c - a) * (c - b);
  const Wide numerator = y[0] * (t - b) * (t - c) * (c - b) - y[1] * (t - a) * (t - c) * (c - a) +
                         y[2] * (t - a) * (t - b) * (b - a);
  if (numerator <= 0) return 0;
  const Wide value = (numerator + denominator - 1) / denominator;
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max() / 4;
  return value > kMost ? kMost : static_cast<std::int64_t>(value);
}

bool same_events(const Timeline& a, const Timeline& b) {
  return a.units.size() == b.units.size() &&
         std::equal(
             a.events.begin(), a.events.end(), b.events.begin(), b.events.end(),
             [](const Event& e, const Event& f) { return e.kind == f.kind && e.unit == f.unit; }) &&
         std::equal(a.units.begin(), a.units.end(), b.units.begin(),
                    [](const Unit& u, const Unit& v) {
                      return u.layer == v.layer && u.part == v.part &&
                             u.microbatch == v.microbatch && u.level == v.level &&
                             u.may_activation == v.may_activation && u.may_full == v.may_full;
                    });
}

}  // namespace

Result<Timeline> fit(std::vector<Sized> measured, std::int64_t size) {
  std::sort(measured.begin(), measured.end(),
            [](const Sized& a, const Sized& b) { return a.size < b.size; });
  measured.erase(std::unique(measured.begin(), measured.end(),
                             [](const Sized& a, const Sized& b) { return a.size == b.size; }),
                 measured.end());
  if (measured.size() < 3) return Error{"three sizes must have been measured"};
  // The widest span, and between its ends what is nearest.
  const auto middle = std::min_element(measured.begin() + 1, measured.end() - 1,
                                       [&](const Sized& a, const Sized& b) {
                                         return std::abs(a.size - size) < std::abs(b.size - size);
                                       });
  const Sized three[] = {measured.front(), *middle, measured.back()};
  for (const auto& other : three) {
    if (!same_events(*other.timeline, *three[0].timeline)) {
      return Error{"the steps of different sizes are not made of the same events"};
    }
  }
  const Three x{three[0].size, three[1].size, three[2].size};
  const auto at = [&](auto number) {
    return parabola(
        x,
        Three{number(*three[0].timeline), number(*three[1].timeline), number(*three[2].timeline)},
        size);
  };
  Timeline t = *three[0].timeline;
  for (std::size_t u = 0; u < t.units.size(); ++u) {
    auto& unit = t.units[u];
    unit.fc1_bytes = at([&](const Timeline& m) { return m.units[u].fc1_bytes; });
    unit.output_bytes = at([&](const Timeline& m) { return m.units[u].output_bytes; });
    for (std::size_t l = 0; l < kLevels; ++l) {
      unit.extra_bytes[l] = at([&](const Timeline& m) { return m.units[u].extra_bytes[l]; });
      unit.cost_ns[l] = at([&](const Timeline& m) { return m.units[u].cost_ns[l]; });
    }
  }
  for (std::size_t i = 0; i < t.events.size(); ++i) {
    auto& e = t.events[i];
    e.bytes = at([&](const Timeline& m) { return m.events[i].bytes; });
    e.peak = std::max(at([&](const Timeline& m) { return m.events[i].peak; }), e.bytes);
    if (i > 0) e.peak = std::max(e.peak, t.events[i - 1].bytes);
  }
  return t;
}

}  // namespace recoup::budget
