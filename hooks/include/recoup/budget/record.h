// Puts the events of one training step, as they come, together to a Timeline. Any thread.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "recoup/budget/timeline.h"
#include "recoup/result.h"

namespace recoup::budget {

// The bytes that are allocated, and the most since the event before.
struct Memory {
  std::int64_t bytes = 0, peak = 0;
  bool short_of = false;  // the allocator had to give its cache back to go on
};

class Record {
 public:
  // The forward of `unit` begins. `run` is the number by which the other events call it: not 0,
  // and never used before. Where unit.microbatch is below 0 the units of its layer and part are
  // counted, from 0.
  void forward_begins(std::uint64_t run, Unit unit, Memory memory);
  // What is known of the unit only now: see Unit.
  void forward_ends(std::uint64_t run, std::int64_t fc1_bytes, bool holds_fc1, Memory memory);
  // Another backward through the same graph (it was retained): only its last one may be spared by
  // keeping, and what the earlier ones reran stays in the timeline as it was. `extra_bytes`: of
  // inputs that only the checkpoint holds by now.
  void backward_begins(std::uint64_t run, std::int64_t extra_bytes, Memory memory);
  void rerun_ends(std::uint64_t run, Memory memory);
  // A unit whose backward never ran (its output was not used, or an exception came) ends too.
  void backward_ends(std::uint64_t run, Memory memory);
  // What a rerun of the unit takes, for choosing.
  void costs(std::uint64_t run, std::int64_t activation_ns, std::int64_t full_ns);

  // The whole step; the record is empty again. An error where it is none, such as where a unit has
  // not been released: a graph that outlives its step.
  Result<Timeline> finish(Memory memory);
  void clear();

 private:
  void add(EventKind kind, std::int32_t unit, Memory memory);
  Unit* find(std::uint64_t run, std::int32_t* index);

  std::mutex mutex_;
  Timeline timeline_;
  std::map<std::uint64_t, std::int32_t> units_;  // by run
  std::int32_t reruns_ = -1;                     // the unit whose rerun has begun and not ended
};

}  // namespace recoup::budget
