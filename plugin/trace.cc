#include "trace.h"

#include <atomic>
#include <nlohmann/json.hpp>
#include <utility>

namespace recoup {
namespace {

int thread_number() {
  static std::atomic<int> next{1};
  thread_local const int mine = next++;
  return mine;
}

}  // namespace

void Trace::begins(const RegionInfo& region, Kind kind) noexcept {
  const std::lock_guard<std::mutex> guard(mutex_);
  running_[{region.run, kind}] = Clock::now();
}

void Trace::ends(const RegionInfo& region, Kind kind) noexcept {
  const auto now = Clock::now();
  const auto us = [](Clock::duration d) {
    return std::chrono::duration<double, std::micro>(d).count();
  };
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto start = running_.find({region.run, kind});
  if (start == running_.end()) return;
  const Span span{us(start->second - epoch_), us(now - start->second), 0, thread_number(), kind};
  running_.erase(start);
  if (spans_.size() >= kMaxSpans) {
    ++left_out_;
    return;
  }
  const auto [name, fresh] =
      name_numbers_.try_emplace(region.name, static_cast<std::uint32_t>(names_.size()));
  if (fresh) names_.push_back(region.name);
  spans_.push_back(span);
  spans_.back().name = name->second;
  if (doubling_.due(spans_.size())) write_locked();  // where it fails, the last write says so
}

double Trace::now_us() const {
  return std::chrono::duration<double, std::micro>(Clock::now() - epoch_).count();
}

void Trace::memory(std::int64_t bytes, std::int64_t budget) noexcept {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (samples_.size() < kMaxSpans) {
    samples_.push_back({now_us(), bytes, budget});
  } else {
    ++left_out_;
  }
}

void Trace::event(const std::string& text, std::int64_t predicted) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (instants_.size() < kMaxSpans) {
    instants_.push_back({now_us(), text, predicted});
  } else {
    ++left_out_;
  }
}

std::string Trace::write() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return write_locked();
}

std::uint64_t Trace::left_out() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return left_out_;
}

std::string Trace::write_locked() {
  using nlohmann::json;
  // Span by span: a million of them as one JSON value would be a gigabyte.
  return output_.write([this](std::ostream& out) {
    out << "{\"displayTimeUnit\": \"ms\",\n \"otherData\": {\"spans_left_out\": " << left_out_
        << "},\n \"traceEvents\": [";
    const char* separator = "\n  ";
    const auto add = [&](const json& event) {
      out << std::exchange(separator, ",\n  ")
          << event.dump(-1, ' ', false, json::error_handler_t::replace);
    };
    for (const auto& s : spans_) {
      const bool recompute = s.kind == kRecompute;
      add({{"name", (recompute ? "recompute " : "") + names_[s.name]},
           {"cat", recompute ? "recompute" : "forward"},
           {"ph", "X"},
           {"ts", s.start_us},
           {"dur", s.length_us},
           {"pid", rank_},
           {"tid", s.thread}});
    }
    for (const auto& s : samples_) {
      add({{"name", "memory"},
           {"ph", "C"},
           {"ts", s.time_us},
           {"pid", rank_},
           {"args", {{"bytes", s.bytes}}}});
      add({{"name", "memory budget"},
           {"ph", "C"},
           {"ts", s.time_us},
           {"pid", rank_},
           {"args", {{"bytes", s.budget}}}});
    }
    for (const auto& i : instants_) {
      add({{"name", i.text},
           {"cat", "budget"},
           {"ph", "i"},
           {"s", "p"},
           {"ts", i.time_us},
           {"pid", rank_},
           {"tid", 0},
           {"args", i.predicted > 0 ? json{{"predicted_bytes", i.predicted}} : json::object()}});
    }
    out << "\n ]}\n";
  });
}

}  // namespace recoup
