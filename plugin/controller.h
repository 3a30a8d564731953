// Keeps a memory budget while its host trains: measures one step in which everything recomputes,
// chooses what need not (hooks/budget), and watches each step from then on. No LibTorch.
//
//   warm-up    two steps with everything recomputed: the optimizer's state comes
//   measure    one step, the same, with the memory read at each event
//   plan       the levels chosen, from the next forward on; at each step's end the peak against
//              the prediction. Above it, or a part or shape of step that was never measured:
//              everything recomputed for the rest of that step, and measured again
//
// What was measured is kept for each shape (the sizes of the step's first input). From three that
// differ in one size on, others are predicted.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "layers.h"
#include "plan.h"
#include "recoup/budget/choose.h"
#include "recoup/budget/record.h"

namespace recoup {

class Controller {
 public:
  using Shape = std::vector<std::int64_t>;
  struct World {
    std::int64_t budget = 0;  // of the device
    // How much of it may be in the bytes that `memory` counts; null: all.
    std::function<std::int64_t(std::int64_t budget)> room;
    std::optional<budget::Pipeline> pipeline;
    bool restarts = true;  // whether each step's peak may be restarted; else only measured steps'
    // The allocator's bytes; `restart`: the peak begins anew. False where it failed.
    std::function<bool(bool restart, budget::Memory*)> memory;
    // The maximum over the ranks that must decide alike; null: there are none.
    std::function<bool(std::int64_t*, std::size_t)> agree;
    std::function<void(bool warning, const std::string&)> say;
    // For a trace; may be null.
    std::function<void(std::int64_t bytes)> show_memory;
    // `predicted`: the peak from now on, in bytes; 0 where the sentence is of none.
    std::function<void(const std::string&, std::int64_t predicted)> show_event;
  };

  explicit Controller(World world) : world_(std::move(world)) {}

  // `most`: what the configuration allows for the layer. Any thread.
  Decision decide(Decision most, std::int64_t layer, std::int64_t microbatch);
  // A forward without gradients: an evaluation, where no forward of the step has run yet.
  void evaluates();

  // A part's forward begins with gradients. Any thread.
  struct Run {
    bool recompute = true;  // else kept
    bool measured = false;  // and the events of this run go to record()
  };
  Run begins(std::int64_t layer, std::uint64_t modules, std::int64_t microbatch,
             const Shape& first_input, std::int64_t input_bytes);

  // In a measured step: an event's memory, and where the events go but for the first of each run.
  budget::Memory measure();
  void unit_begins(std::uint64_t run, std::int64_t layer, const std::string& part,
                   std::uint32_t modules, std::int64_t microbatch, budget::Memory memory);
  budget::Record& record() { return record_; }
  // Something went wrong with it: the step is not used.
  void spoil();
  // Called before a measured step is looked at: what is still to come goes to record().
  void before_finish(std::function<void()> function) { before_finish_ = std::move(function); }

  // False where the host's memory or agree failed.
  bool step_end(bool failed, bool skipped);
  // The host calls no more, and may be gone: none of its functions is called from now on.
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::int64_t kAttempts = 8;  // at measuring a step that cannot be
  enum class Mode { kUnknown, kAll, kMeasure, kPlan };
  struct Known {
    budget::Timeline timeline;  // without units where it was fitted
    std::vector<PartKey> keys;
    bool by_microbatch = false;
    std::shared_ptr<const Plan> plan;
    bool fits = false, told = false;
  };
  // A plan whose peak was above what it promised.
  struct Suspect {
    Shape shape;
    budget::Decisions decisions;
    std::int64_t peak;
  };

  bool read_memory(bool restart, budget::Memory* memory);
  bool end(bool metered, budget::Memory memory, bool no_step);
  void start(const Shape& shape);
  bool fit(const Shape& shape);
  void stray(PartKey part, const std::string& why);
  bool plan(Known& known, const budget::Model& model);
  bool agree(std::vector<std::int64_t>& values);
  bool adopt(budget::Timeline timeline);
  void explain_suspect(const budget::Model& model);
  void give_up(const std::string& why);
  void check(budget::Memory memory);
  void show(bool warning, const std::string& text, std::int64_t predicted = 0);
  void tell();

  const World world_;
  std::mutex memory_mutex_;  // held for a call of the host's memory
  bool closed_ = false;
  std::function<void()> before_finish_;
  budget::Record record_;

  std::mutex mutex_;
  // Of the step under way.
  Mode mode_ = Mode::kUnknown;
  Shape shape_;
  std::shared_ptr<const Plan> plan_;
  std::set<std::int64_t> begun_;  // microbatches
  bool evaluated_ = false, failed_ = false;
  std::string strayed_;        // why the step is none that was planned
  std::vector<PartKey> keys_;  // of the record's units
  std::set<std::tuple<std::int64_t, std::string, std::int64_t>> seen_;  // layer, part, microbatch
  std::unordered_map<PartKey, std::int64_t, PartKeyHash> input_bytes_;
  bool by_microbatch_ = true;
  Clock::time_point step_began_ = Clock::now();

  // Of all steps.
  std::int64_t step_ = 0, warm_ups_ = 2, attempts_ = 0;
  std::int64_t reserve_ = 0;  // came and went outside of measured steps
  bool measure_next_ = false, hopeless_ = false, said_floor_ = false;
  std::optional<PartKey> wanted_;  // was not in the last measured step
  std::optional<Suspect> suspect_;
  std::map<Shape, Known> known_;
  struct Line {
    bool warning;
    std::string text;
    std::int64_t predicted;
  };
  std::vector<Line> to_say_;  // once no lock is held
};

}  // namespace recoup
