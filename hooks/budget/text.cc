// Timelines as text.
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <sstream>

#include "recoup/budget/timeline.h"

namespace recoup::budget {
namespace {

constexpr char kFirstLine[] = "recoup timeline 1";
constexpr const char* kEvents[] = {"FB", "FE", "BB", "RE", "BE", "mark", "end"};

// The words of one line, read one after the other; the first that is wrong makes the error.
class Line {
 public:
  Line(const std::string& text, std::string where) : in_(text), where_(std::move(where)) {}

  std::string word() {
    std::string w;
    if (!(in_ >> w)) fail("a word is missing");
    return w;
  }

  void expect(const char* name) {
    const auto w = word();
    if (w != name) fail("\"" + w + "\" where \"" + name + "\" is expected");
  }

  std::int64_t number(std::int64_t least, std::int64_t most) {
    const auto w = word();
    char* end = nullptr;
    errno = 0;
    const auto n = std::strtoll(w.c_str(), &end, 10);
    if (w.empty() || *end != '\0' || errno != 0 || n < least || n > most) {
      fail("\"" + w + "\" where an integer from " + std::to_string(least) + " to " +
           std::to_string(most) + " is expected");
      return least;
    }
    return n;
  }
  // Sums of as many as there can be stay within 64 bits.
  std::int64_t amount() { return number(0, std::int64_t{1} << 50); }

  void finish() {
    std::string w;
    if (in_ >> w) fail("\"" + w + "\" after the line's last word");
  }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = where_ + what;
  }
  const std::string& error() const { return error_; }

 private:
  std::istringstream in_;
  std::string where_, error_;
};

}  // namespace

std::string format(const Timeline& t) {
  std::ostringstream out;
  out << kFirstLine << "\n";
  for (const auto& u : t.units) {
    out << "unit layer " << u.layer << " part " << u.part << " microbatch " << u.microbatch
        << " level " << index(u.level) << " may " << u.may_activation << " " << u.may_full
        << " fc1 " << u.fc1_bytes << " " << u.holds_fc1 << " output " << u.output_bytes << " extra "
        << u.extra_bytes[1] << " " << u.extra_bytes[2] << " ns " << u.cost_ns[1] << " "
        << u.cost_ns[2] << "\n";
  }
  for (const auto& e : t.events) {
    out << kEvents[static_cast<int>(e.kind)] << " " << e.unit << " " << e.bytes << " " << e.peak
        << "\n";
  }
  return out.str();
}

Result<Timeline> parse(const std::string& text, const std::string& name) {
  Timeline t;
  std::istringstream in(text);
  std::string line;
  for (std::int64_t number = 1; std::getline(in, line); ++number) {
    const auto where = name + ":" + std::to_string(number) + ": ";
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (number == 1) {
      if (line != kFirstLine) {
        return Error{where + "is no timeline: the first line must be \"" + kFirstLine + "\""};
      }
      continue;
    }
    if (line.empty() || line[0] == '#') continue;
    Line words(line, where);
    const auto first = words.word();
    if (first == "unit") {
      Unit u;
      words.expect("layer"), u.layer = words.number(1, std::int64_t{1} << 40);
      words.expect("part"), u.part = words.word();
      words.expect("microbatch"), u.microbatch = words.number(0, std::int64_t{1} << 40);
      words.expect("level"), u.level = static_cast<Level>(words.number(0, 2));
      words.expect("may"), u.may_activation = words.number(0, 1) != 0;
      u.may_full = words.number(0, 1) != 0;
      words.expect("fc1"), u.fc1_bytes = words.amount();
      u.holds_fc1 = words.number(0, 1) != 0;
      words.expect("output"), u.output_bytes = words.amount();
      words.expect("extra"), u.extra_bytes[1] = words.amount();
      u.extra_bytes[2] = words.amount();
      words.expect("ns"), u.cost_ns[1] = words.amount();
      u.cost_ns[2] = words.amount();
      t.units.push_back(u);
    } else {
      std::size_t kind = 0;
      while (kind < std::size(kEvents) && first != kEvents[kind]) ++kind;
      if (kind == std::size(kEvents)) {
        return Error{where + "\"" + first +
                     "\" where unit, FB, FE, BB, RE, BE, mark or end is expected"};
      }
      Event e;
      e.kind = static_cast<EventKind>(kind);
      e.unit = static_cast<std::int32_t>(words.number(-1, INT32_MAX));
      e.bytes = words.amount();
      e.peak = words.amount();
      t.events.push_back(e);
    }
    words.finish();
    if (!words.error().empty()) return Error{words.error()};
  }
  if (const auto ok = check(t); !ok.ok()) return Error{name + ": " + ok.error().text};
  return t;
}

}  // namespace recoup::budget
