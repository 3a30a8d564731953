// RECOUP_TRACE=FILE: FILE gets each forward and each recompute of a region as a span, for
// ui.perfetto.dev; under a memory budget also the memory as a counter, with the budget beside it,
// and each decision as an instant.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "output.h"
#include "recoup/checkpoint/events.h"

namespace recoup {

class Trace final : public EventListener {
 public:
  // Of the spans, as many as this are kept (about 40 MB); of the rest the number.
  static constexpr std::size_t kMaxSpans = std::size_t{1} << 20;

  Trace(Output output, int rank) : output_(std::move(output)), rank_(rank) {}

  // Writes the spans so far. Why it could not, or empty.
  std::string write();
  // How many spans did not fit.
  std::uint64_t left_out();

  // The bytes that are allocated now.
  void memory(std::int64_t bytes, std::int64_t budget) noexcept;
  // Something that was decided, and the peak that it promises, or 0.
  void event(const std::string& text, std::int64_t predicted);

  void forward_begins(const RegionInfo& region, const std::vector<at::Tensor>&) noexcept override {
    begins(region, kForward);
  }
  void forward_ends(const RegionInfo& region) noexcept override { ends(region, kForward); }
  void recompute_begins(const RegionInfo& region) noexcept override { begins(region, kRecompute); }
  void recompute_ends(const RegionInfo& region) noexcept override { ends(region, kRecompute); }

 private:
  using Clock = std::chrono::steady_clock;
  enum Kind : std::uint8_t { kForward, kRecompute };
  struct Span {
    double start_us, length_us;
    std::uint32_t name;  // in names_
    std::int32_t thread;
    Kind kind;
  };
  struct Sample {
    double time_us;
    std::int64_t bytes, budget;
  };
  struct Instant {
    double time_us;
    std::string text;
    std::int64_t predicted;
  };
  double now_us() const;
  void begins(const RegionInfo& region, Kind kind) noexcept;
  void ends(const RegionInfo& region, Kind kind) noexcept;
  std::string write_locked();

  const Output output_;
  const int rank_;
  const Clock::time_point epoch_ = Clock::now();
  std::mutex mutex_;
  std::map<std::pair<std::uint64_t, Kind>, Clock::time_point> running_;  // by run
  std::map<std::string, std::uint32_t> name_numbers_;
  std::vector<std::string> names_;
  std::vector<Span> spans_;
  std::vector<Sample> samples_;
  std::vector<Instant> instants_;
  std::uint64_t left_out_ = 0;
  Doubling doubling_;
};

}  // namespace recoup
