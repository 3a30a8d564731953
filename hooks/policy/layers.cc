#include "recoup/policy/layers.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "text.h"

namespace recoup {
namespace {

constexpr std::int64_t kEndless = std::numeric_limits<std::int64_t>::max();

Error bad_term(const std::string& term) {
  return {text::quoted(term) +
          " is no layer expression; allowed are terms separated by commas: 7, 7-12, 7-, 1-24:2 "
          "(every second), 2/3 (the first 2 of every 3), all, last, last-2, -1 (all but the last) "
          "and !TERM (without)"};
}

}  // namespace

LayerSet LayerSet::all() {
  LayerSet set;
  set.terms_.push_back({false, {1, false}, {kEndless, false}, 1, 1, "all"});
  return set;
}

LayerSet LayerSet::first(std::int64_t n) {
  LayerSet set;
  if (n == 0) return set;
  set.terms_.push_back(
      {false, {1, false}, {n, false}, 1, 1, n == 1 ? "1" : "1-" + std::to_string(n)});
  return set;
}

Result<LayerSet::Term> LayerSet::parse_term(const std::string& whole) {
  std::string s(text::trim(whole));
  Term term{false, {1, false}, {kEndless, false}, 1, 1, s};
  if (!s.empty() && s[0] == '!') {
    term.removes = true;
    s = std::string(text::trim(s.substr(1)));
  }
  const auto positive = [](const std::string& digits) -> std::optional<std::int64_t> {
    if (digits.empty() || digits[0] == '+' || digits[0] == '-') return std::nullopt;
    const auto value = text::to_integer(digits);
    return value && *value >= 1 ? value : std::nullopt;
  };

  if (s == "all") return term;
  if (s.size() > 1 && s[0] == '-') {  // all but the last K
    const auto k = positive(s.substr(1));
    if (!k) return bad_term(whole);
    term.high = {*k, true};
    return term;
  }
  if (const auto slash = s.find('/'); slash != std::string::npos) {
    const auto run = positive(s.substr(0, slash)), period = positive(s.substr(slash + 1));
    if (!run || !period || *run > *period) return bad_term(whole);
    term.run = *run;
    term.period = *period;
    return term;
  }
  if (const auto colon = s.find(':'); colon != std::string::npos) {
    const auto step = positive(s.substr(colon + 1));
    if (!step) return bad_term(whole);
    term.period = *step;
    s.resize(colon);
  }

  // What is left is POINT, POINT- or POINT-POINT, where POINT is a number, last or last-K.
  std::size_t at = 0;
  const auto number = [&]() -> std::optional<std::int64_t> {
    const auto end = std::min(s.find_first_not_of("0123456789", at), s.size());
    const auto value = positive(s.substr(at, end - at));
    if (value) at = end;
    return value;
  };
  const auto point = [&]() -> std::optional<Point> {
    if (s.compare(at, 4, "last") != 0) {
      const auto value = number();
      if (!value) return std::nullopt;
      return Point{*value, false};
    }
    at += 4;
    if (at + 1 < s.size() && s[at] == '-' && s[at + 1] >= '0' && s[at + 1] <= '9') {
      ++at;
      const auto value = number();
      if (!value) return std::nullopt;
      return Point{*value, true};
    }
    return Point{0, true};
  };
  const auto low = point();
  if (!low) return bad_term(whole);
  term.low = term.high = *low;
  if (at < s.size() && s[at] == '-') {
    ++at;
    if (at == s.size()) {
      term.high = {kEndless, false};
    } else {
      const auto high = point();
      if (!high) return bad_term(whole);
      term.high = *high;
    }
  }
  const bool comparable = term.low.from_end == term.high.from_end;
  const bool backwards =
      term.low.from_end ? term.high.offset > term.low.offset : term.high.offset < term.low.offset;
  if (at != s.size() || (comparable && backwards)) return bad_term(whole);
  return term;
}

Result<LayerSet> LayerSet::parse(const std::string& expression) {
  LayerSet set;
  const auto commas = std::count(expression.begin(), expression.end(), ',');
  if (static_cast<std::size_t>(commas) >= kMostTerms) {
    return Error{text::quoted(expression) + " has more than " + std::to_string(kMostTerms) +
                 " terms; write ranges such as 7-12"};
  }
  for (const auto& part : text::split(expression, ',')) {
    auto term = parse_term(part);
    if (!term.ok()) return term.error();
    if (set.terms_.empty() && term.value().removes) set = all();
    set.terms_.push_back(term.value());
  }
  return set;
}

bool LayerSet::Term::has(std::int64_t layer, std::int64_t total) const {
  const auto from = low.in(total);
  if (layer < from || layer > high.in(total)) return false;
  // Unsigned, as `from` may lie far below zero: last-K of a model that has fewer.
  const auto distance = static_cast<std::uint64_t>(layer) - static_cast<std::uint64_t>(from);
  return distance % static_cast<std::uint64_t>(period) < static_cast<std::uint64_t>(run);
}

bool LayerSet::Term::names_any(std::int64_t total) const {
  const auto last = std::min(high.in(total), total);
  auto first = std::max<std::int64_t>(low.in(total), 1);
  if (first > last) return false;
  if (has(first, total)) return true;
  // The next run's beginning is the nearest layer that there may be.
  const auto distance =
      (static_cast<std::uint64_t>(first) - static_cast<std::uint64_t>(low.in(total))) %
      static_cast<std::uint64_t>(period);
  return static_cast<std::uint64_t>(period) - distance <= static_cast<std::uint64_t>(last - first);
}

bool LayerSet::contains(std::int64_t layer, std::int64_t total) const {
  // The last term that names the layer decides.
  const auto term = std::find_if(terms_.rbegin(), terms_.rend(),
                                 [&](const Term& t) { return t.has(layer, total); });
  return term != terms_.rend() && !term->removes;
}

bool LayerSet::needs_total() const {
  return std::any_of(terms_.begin(), terms_.end(),
                     [](const Term& t) { return t.low.from_end || t.high.from_end; });
}

std::int64_t LayerSet::largest_named() const {
  std::int64_t largest = 0;
  for (const auto& term : terms_) {
    for (const auto& point : {term.low, term.high}) {
      if (!point.from_end && point.offset != kEndless) largest = std::max(largest, point.offset);
    }
  }
  return largest;
}

std::vector<std::string> LayerSet::terms_without_layer(std::int64_t total) const {
  std::vector<std::string> terms;
  for (const auto& term : terms_) {
    if (!term.names_any(total)) terms.push_back(term.text);
  }
  return terms;
}

std::vector<std::int64_t> LayerSet::members(std::int64_t total) const {
  std::vector<std::int64_t> layers;
  for (std::int64_t n = 1; n <= total; ++n) {
    if (contains(n, total)) layers.push_back(n);
  }
  return layers;
}

std::string LayerSet::text() const {
  if (terms_.empty()) return "none";
  std::string text;
  for (const auto& term : terms_) {
    // A leading ! starts from all, which was not written.
    if (!(&term == &terms_[0] && terms_.size() > 1 && terms_[1].removes && term.text == "all")) {
      text += (text.empty() ? "" : ",") + term.text;
    }
  }
  return text;
}

std::string layer_expression(const std::vector<std::int64_t>& layers) {
  std::string text;
  for (std::size_t i = 0; i < layers.size();) {
    // The longest row of equal steps that begins here; two layers apart are no row.
    auto end = i + 1;
    const auto step = end < layers.size() ? layers[end] - layers[i] : 1;
    while (end < layers.size() && layers[end] - layers[end - 1] == step) ++end;
    if (step != 1 && end - i < 3) end = i + 1;
    text += (i == 0 ? "" : ",") + std::to_string(layers[i]);
    if (end - i > 1) text += "-" + std::to_string(layers[end - 1]);
    if (end - i > 1 && step != 1) text += ":" + std::to_string(step);
    i = end;
  }
  return text.empty() ? "none" : text;
}

}  // namespace recoup
