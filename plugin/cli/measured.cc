#include "measured.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "bytes.h"
#include "command.h"
#include "recoup/policy/layers.h"
#include "table.h"

namespace recoup::cli {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kDeepest = 16;
constexpr double kMostMs = 1e15;
constexpr std::int64_t kMostLayer = 1'000'000;
constexpr std::int64_t kMostBytes = std::int64_t{1} << 56;

Json parse(const std::string& text, const std::string& file) {
  bool deep = false;
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    deep = deep || static_cast<std::size_t>(depth) > kDeepest;
    return !deep;
  };
  auto json = Json::parse(text, watch, false);
  if (deep) throw Problem(file + ": is nested deeper than a trace or a profile");
  if (json.is_discarded()) {
    throw Problem(file +
                  ": not valid JSON: a trace or profile is whole, a timeline begins with "
                  "\"recoup timeline\"");
  }
  return json;
}

double number(const Json& in, const char* key, double most, const std::string& where) {
  const auto at = in.find(key);
  if (at == in.end() || !at->is_number() || !(at->get<double>() >= 0) ||
      !(at->get<double>() <= most)) {
    throw Problem(where + key + ": must be a number from 0 on");
  }
  return at->get<double>();
}

std::string word(const Json& in, const char* key, const std::string& where) {
  const auto at = in.find(key);
  if (at == in.end() || !at->is_string()) throw Problem(where + key + ": must be a text");
  return at->get<std::string>();
}

std::string ms(double value) {
  char text[48];
  std::snprintf(text, sizeof text, "%.3f ms", value);
  return text;
}

double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// "layer 7 mlp.fc1" or "recompute layer 7 mlp.fc1": the layer and the part.
bool split_name(std::string name, std::int64_t& layer, std::string& part) {
  const std::string again = "recompute ", word = "layer ";
  if (name.compare(0, again.size(), again) == 0) name.erase(0, again.size());
  if (name.compare(0, word.size(), word) != 0) return false;
  name.erase(0, word.size());
  const auto blank = name.find(' ');
  const auto digits = name.substr(0, blank);
  if (digits.empty() || digits.size() > 7 ||
      digits.find_first_not_of("0123456789") != std::string::npos || blank == std::string::npos) {
    return false;
  }
  layer = std::stoll(digits), part = name.substr(blank + 1);
  return true;
}

void explain_trace(const Json& json, const std::string& file) {
  struct Times {
    std::vector<double> forward, recompute;  // milliseconds
  };
  std::map<std::string, std::map<std::int64_t, Times>> parts;
  double forward = 0, recompute = 0;
  std::size_t others = 0, n = 0;
  if (!json["traceEvents"].is_array()) throw Problem(file + ": traceEvents: must be a list");
  for (const auto& event : json["traceEvents"]) {
    const auto where = file + ": traceEvents[" + std::to_string(n++) + "]: ";
    if (!event.is_object()) throw Problem(where + "must be a span");
    if (event.value("ph", Json("X")) != Json("X")) {
      ++others;
      continue;
    }
    std::int64_t layer = 0;
    std::string part;
    const auto length = number(event, "dur", kMostMs, where) / 1e3;
    if (!split_name(word(event, "name", where), layer, part)) {
      ++others;
      continue;
    }
    const bool again = word(event, "cat", where) == "recompute";
    auto& times = parts[part][layer];
    (again ? times.recompute : times.forward).push_back(length);
    (again ? recompute : forward) += length;
  }
  if (parts.empty()) {
    throw Problem(file + ": has no forward of a layer: is it a trace of RECOUP_TRACE?");
  }
  std::printf("forward %s, recompute %s (%.1f %% of it) in %zu spans\n\n", ms(forward).c_str(),
              ms(recompute).c_str(), forward > 0 ? 100 * recompute / forward : 0, n - others);
  Table table({"layers", "part", "forwards", "recomputes", "forward each", "recompute each",
               "of all recompute"});
  for (const auto& [part, layers] : parts) {
    // Layers that ran and recomputed as often are one row.
    std::map<std::pair<std::size_t, std::size_t>, std::vector<std::int64_t>> alike;
    for (const auto& [layer, t] : layers) {
      alike[{t.forward.size(), t.recompute.size()}].push_back(layer);
    }
    for (const auto& [count, members] : alike) {
      std::vector<double> once, again;
      double sum = 0;
      for (const auto layer : members) {
        const auto& t = layers.at(layer);
        once.insert(once.end(), t.forward.begin(), t.forward.end());
        again.insert(again.end(), t.recompute.begin(), t.recompute.end());
        for (const auto d : t.recompute) sum += d;
      }
      char share[32];
      std::snprintf(share, sizeof share, "%.1f %%", recompute > 0 ? 100 * sum / recompute : 0);
      table.add({layer_expression(members), part, std::to_string(count.first),
                 std::to_string(count.second), ms(median(once)),
                 again.empty() ? "-" : ms(median(again)), share});
    }
  }
  std::fputs(table.text({1}).c_str(), stdout);
  const auto other = json.find("otherData");
  const bool has = other != json.end() && other->is_object() && other->contains("spans_left_out");
  if (has && (*other)["spans_left_out"].is_number() && (*other)["spans_left_out"] != 0) {
    std::fprintf(stderr, "recoup: %s: %s more spans did not fit and are not counted\n",
                 file.c_str(), (*other)["spans_left_out"].dump().c_str());
  }
  std::printf(
      "\nA trace has times and no bytes: what each part frees is in RECOUP_PROFILE's file, what "
      "holds the peak in a timeline.\n");
}

void explain_profile(const Json& json, const std::string& file) {
  struct Kind {
    std::string part;
    std::int64_t freed;
    std::vector<std::int64_t> layers;
    std::vector<double> times;
    double rate() const { return static_cast<double>(freed) / std::max(median(times), 1e-6); }
  };
  std::vector<Kind> kinds;
  std::size_t n = 0;
  const auto regions = json.find("regions");
  if (regions == json.end() || !regions->is_array()) {
    throw Problem(file + ": regions: must be a list");
  }
  for (const auto& region : *regions) {
    const auto where = file + ": regions[" + std::to_string(n++) + "]: ";
    if (!region.is_object()) throw Problem(where + "must be a part of a layer");
    const auto layer =
        static_cast<std::int64_t>(number(region, "layer", static_cast<double>(kMostLayer), where));
    const auto most = static_cast<double>(kMostBytes);
    const auto part = word(region, "part", where);
    const auto freed = static_cast<std::int64_t>(number(region, "saved_bytes", most, where) -
                                                 number(region, "extra_bytes", most, where));
    const auto time = number(region, "recompute_ms", kMostMs, where);
    const auto at = std::find_if(kinds.begin(), kinds.end(),
                                 [&](const Kind& k) { return k.part == part && k.freed == freed; });
    auto& kind = at == kinds.end() ? *kinds.insert(at, {part, freed, {}, {}}) : *at;
    kind.layers.push_back(layer);
    kind.times.push_back(time);
  }
  if (kinds.empty()) throw Problem(file + ": regions: is empty: nothing was measured");
  std::stable_sort(kinds.begin(), kinds.end(),
                   [](const Kind& a, const Kind& b) { return a.rate() > b.rate(); });
  std::printf("To give up first (most bytes for their time; earliest layers first):\n");
  Table table({"layers", "part", "frees each", "bytes", "costs each", "all free", "all cost"});
  for (auto& k : kinds) {
    std::sort(k.layers.begin(), k.layers.end());
    const auto all = static_cast<double>(k.layers.size());
    table.add({layer_expression(k.layers), k.part, show_bytes(static_cast<double>(k.freed)),
               show_count(k.freed), ms(median(k.times)),
               show_bytes(static_cast<double>(k.freed) * all), ms(median(k.times) * all)});
  }
  std::fputs(table.text({1}).c_str(), stdout);
  std::printf(
      "\nFor one forward of each layer. A profile does not know what holds the peak: recoup plan, "
      "or a timeline, does.\n");
}

}  // namespace

bool is_json(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first != std::string::npos && (text[first] == '{' || text[first] == '[');
}

void explain_json(const std::string& text, const std::string& file) {
  const auto json = parse(text, file);
  if (json.is_object() && json.contains("traceEvents")) {
    explain_trace(json, file);
  } else if (json.is_object() && json.contains("recoup_profile")) {
    if (json["recoup_profile"] != Json(1)) {
      throw Problem(file + ": recoup_profile: this program reads version 1");
    }
    explain_profile(json, file);
  } else {
    throw Problem(file +
                  ": is no trace (traceEvents), no profile (recoup_profile) and no timeline");
  }
}

}  // namespace recoup::cli
