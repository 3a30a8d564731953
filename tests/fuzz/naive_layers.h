// Layer expressions a second time, the slow and simple way of the README's grammar: a regular
// expression for a term, and every layer tried.
#pragma once

#include <optional>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace recoup::naive {

struct Term {
  bool removes = false;
  std::set<int> layers;
};

struct Expression {
  std::vector<Term> terms;
  std::set<int> layers;  // of 1..total
};

inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

using Number = __int128;
constexpr Number kLargest = 9223372036854775807;

// The number in `digits`, nothing where it is larger than a layer's number can be.
inline std::optional<Number> number(const std::string& digits) {
  if (digits.size() > 19) return std::nullopt;
  const Number n = std::stoull(digits);
  return n <= kLargest ? std::optional<Number>(n) : std::nullopt;
}

// A number, last or last-K, in a model of `total` layers.
inline std::optional<Number> point(const std::string& text, int total) {
  if (text == "last") return total;
  if (text.rfind("last-", 0) != 0) return number(text);
  const auto back = number(text.substr(5));
  return back ? std::optional<Number>(total - *back) : std::nullopt;
}

inline std::optional<Term> term(const std::string& text, int total) {
  static const std::regex form(
      "[ \t\r\n]*(!?)[ \t\r\n]*(?:(all)|-([1-9][0-9]*)|([1-9][0-9]*)/([1-9][0-9]*)|"
      "((?:last(?:-[1-9][0-9]*)?)|[1-9][0-9]*)(-((?:last(?:-[1-9][0-9]*)?)|[1-9][0-9]*)?)?"
      "(?::([1-9][0-9]*))?)[ \t\r\n]*");
  std::smatch m;
  if (!std::regex_match(text, m, form)) return std::nullopt;
  Number low = 1, high = total, period = 1, run = 1;
  bool ok = true;
  const auto take = [&](Number& into, const std::optional<Number>& value) {
    if (value) into = *value;
    ok = ok && value;
  };
  if (m[3].matched) {
    Number back = 0;
    take(back, number(m[3]));
    high = total - back;
  } else if (m[4].matched) {
    take(run, number(m[4]));
    take(period, number(m[5]));
    ok = ok && run <= period;
  } else if (m[6].matched) {
    take(low, point(m[6], total));
    if (!m[7].matched) {
      high = low;
    } else if (m[8].matched) {
      take(high, point(m[8], total));
      // Two points from the same end must be in order; others depend on the model.
      const bool from_end = m[6].str()[0] == 'l';
      if (from_end == (m[8].str()[0] == 'l')) ok = ok && low <= high;
    }
    if (m[9].matched) take(period, number(m[9]));
  }
  if (!ok) return std::nullopt;
  Term result{m[1].length() > 0, {}};
  for (int n = 1; n <= total; ++n) {
    if (n >= low && n <= high && (n - low) % period < run) result.layers.insert(n);
  }
  return result;
}

// Nothing where it is no expression.
inline std::optional<Expression> parse(const std::string& text, int total) {
  Expression result;
  for (const auto& part : split(text)) {
    const auto t = term(part, total);
    if (!t) return std::nullopt;
    if (result.terms.empty() && t->removes) {
      for (int n = 1; n <= total; ++n) result.layers.insert(n);
    }
    for (const int n : t->layers) {
      if (t->removes) {
        result.layers.erase(n);
      } else {
        result.layers.insert(n);
      }
    }
    result.terms.push_back(*t);
  }
  return result;
}

}  // namespace recoup::naive
