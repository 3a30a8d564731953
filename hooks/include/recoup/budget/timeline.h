// The memory of one training step on one rank, as it was measured: what the budget works from.
//
// A unit is one checkpointable part of one layer in one microbatch. In a step it has five events,
// in this order:
//   FB, FE  its forward begins and ends
//   BB      the first unpack of any of its saved tensors in backward, before a rerun allocates
//   RE      its rerun ends (right after BB where it is kept)
//   BE      the last of its saved tensors is released
// At each event stand the bytes that are allocated then, and the peak since the event before.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "recoup/result.h"

namespace recoup::budget {

// What a unit keeps from forward to backward: everything that autograd saves, fc1's output, or its
// input only. A unit without such a middle (core attention) is kept or at kFull.
enum class Level : std::uint8_t { kKept = 0, kActivation = 1, kFull = 2 };
inline constexpr std::size_t kLevels = 3;
constexpr std::size_t index(Level level) { return static_cast<std::size_t>(level); }

// A number for each level.
using PerLevel = std::array<std::int64_t, kLevels>;

struct Unit {
  std::int64_t layer = 1;       // 1-indexed, global
  std::string part = "mlp";     // one word
  std::int64_t microbatch = 0;  // 0-indexed, in the order of their forwards
  Level level = Level::kFull;   // in the measured step

  // What may be chosen beside kKept.
  bool may_activation = false, may_full = true;

  std::int64_t fc1_bytes = 0;     // fc1's output; 0 where there is no level kActivation
  std::int64_t output_bytes = 0;  // the unit's output
  // Bytes of inputs that at this level only the checkpoint keeps alive after the forward, because
  // the kept forward does not save them (the input of a frozen fc1, say).
  PerLevel extra_bytes{};
  // Whether at kFull, too, the forward holds fc1's output until it ends (as recoup's MLP in two
  // parts does). Where that is not known, false: the prediction is then an upper bound.
  bool holds_fc1 = false;
  PerLevel cost_ns{};  // what a rerun at this level takes; 0 for kKept

  bool may(Level l) const {
    return l == Level::kKept || (l == Level::kActivation ? may_activation : may_full);
  }
};

enum class EventKind : std::uint8_t {
  kForwardBegin,
  kForwardEnd,
  kBackwardBegin,
  kRerunEnd,
  kBackwardEnd,
  kMark,    // of no unit: between microbatches, say
  kStepEnd  // after the optimizer, the last event
};

struct Event {
  EventKind kind = EventKind::kStepEnd;
  std::int32_t unit = -1;  // index in Timeline::units; -1 for kMark and kStepEnd
  std::int64_t bytes = 0;  // allocated at the event
  std::int64_t peak = 0;   // the most allocated since the event before, both ends included
};

struct Timeline {
  std::vector<Unit> units;
  std::vector<Event> events;

  std::int64_t peak() const;
  // "layer 3 mlp, microbatch 1: its rerun", for what ends at events[i].
  std::string describe(std::size_t event) const;
};

// One sentence where the timeline is not one: a unit's event missing, twice or in a wrong order, a
// unit's forward or rerun around another unit's event, a peak below its ends, no step's end.
Result<bool> check(const Timeline& timeline);

// Timelines as text, a line for each unit and event; parse gives an error with `name`:line. The
// format is described in hooks/budget/README.md.
std::string format(const Timeline& timeline);
Result<Timeline> parse(const std::string& text, const std::string& name);

}  // namespace recoup::budget
