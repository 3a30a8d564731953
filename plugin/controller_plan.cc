// The controller's planning: what becomes of a measured step, and of a planned one.
#include <algorithm>
#include <cstdio>

#include "controller.h"
#include "recoup/budget/fit.h"

namespace recoup {
namespace {

constexpr std::size_t kShapes = 256;  // that are kept

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

void Controller::show(bool warning, const std::string& text, std::int64_t predicted) {
  to_say_.push_back({warning, text, predicted});
}

void Controller::tell() {
  std::vector<Line> lines;
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    lines.swap(to_say_);
  }
  for (const auto& [warning, text, predicted] : lines) {
    if (world_.say) world_.say(warning, "recoup: " + text);
    if (world_.show_event) world_.show_event(text, predicted);
  }
}

// Plans for a shape that was not measured, from those that were. Ranks that must decide alike plan
// at a step's end only, together.
bool Controller::fit(const Shape& shape) {
  if (world_.agree) return false;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    std::vector<budget::Sized> measured;
    const Known* like = nullptr;
    for (const auto& [other, known] : known_) {
      if (known.timeline.units.empty() || other.size() != shape.size()) continue;
      auto same = other;
      same[d] = shape[d];
      if (same != shape || (like != nullptr && known.keys != like->keys)) continue;
      like = &known;
      measured.push_back({other[d], &known.timeline});
    }
    auto timeline = budget::fit(std::move(measured), shape[d]);
    if (!timeline.ok()) continue;
    const auto model = budget::Model::from(std::move(timeline.value()));
    if (!model.ok()) continue;
    Known fitted;
    fitted.keys = like->keys;
    fitted.by_microbatch = like->by_microbatch;
    if (!plan(fitted, model.value())) continue;
    known_[shape] = std::move(fitted);
    return true;
  }
  return false;
}

// Chooses for what was measured. False where the ranks could not agree.
bool Controller::plan(Known& known, const budget::Model& model) {
  budget::Options options;
  options.pipeline = world_.pipeline;
  options.same_in_microbatches = !known.by_microbatch;
  const auto room = (world_.room ? world_.room(world_.budget) : world_.budget) - reserve_;
  auto choice = budget::choose(model, std::max<std::int64_t>(room, 0), options);
  known.fits = choice.fits;
  std::vector<std::int64_t> levels;
  for (const auto level : choice.decisions) levels.push_back(static_cast<std::int64_t>(level));
  if (!agree(levels)) return false;
  for (std::size_t u = 0; u < levels.size(); ++u) {
    const auto level = static_cast<budget::Level>(levels[u]);
    if (model.timeline().units[u].may(level)) choice.decisions[u] = level;
  }
  known.plan =
      std::make_shared<Plan>(model, std::move(choice.decisions), known.keys, known.by_microbatch);
  return true;
}

// What a plan promised too little of: either the host has grown, and the step that was measured
// since shows it, or it is something that comes and goes, for which room is left from now on.
void Controller::explain_suspect(const budget::Model& model) {
  if (suspect_->shape != shape_) return;
  if (suspect_->decisions.size() == model.units().size()) {
    const auto missing = suspect_->peak - model.predict(suspect_->decisions).peak;
    if (missing > 0) {
      reserve_ += missing;
      show(false, "the step measured since explains a peak of " + bytes_text(suspect_->peak) +
                      " but for " + bytes_text(missing) + ", which are left free from now on");
    }
  }
  suspect_.reset();
}

// Of a planned step.
void Controller::check(budget::Memory memory) {
  const auto known = known_.find(shape_);
  if (known == known_.end()) return;
  const auto predicted = plan_->prediction().peak;
  const auto expected = predicted + reserve_;  // with what comes and goes
  const bool above = memory.peak > expected + expected / 100 ||
                     (known->second.fits && (memory.peak > world_.budget || memory.short_of));
  auto text = "step " + std::to_string(step_) + ": peak " + bytes_text(memory.peak) +
              " (predicted " + bytes_text(predicted) + ")";
  if (above) {
    measure_next_ = true;
    suspect_ = Suspect{shape_, plan_->decisions(), memory.peak};
    if (memory.short_of) reserve_ += world_.budget / 100;
    show(true, text + (memory.short_of ? ", and the allocator ran short" : "") + ", budget " +
                   bytes_text(world_.budget) +
                   ": the next step is measured, with everything recomputed that may be");
  } else if (!std::exchange(known->second.told, true)) {
    char share[32];
    std::snprintf(share, sizeof share, "%.1f %%",
                  100e-9 * static_cast<double>(plan_->prediction().cost_ns) /
                      seconds(Clock::now() - step_began_));
    show(false, text + ", recompute " + share + " of the step");
  }
}

bool Controller::agree(std::vector<std::int64_t>& values) {
  return !world_.agree || world_.agree(values.data(), values.size());
}

void Controller::give_up(const std::string& why) {
  hopeless_ = true;
  known_.clear();
  show(true, "the memory budget cannot be planned for: " + why +
                 "; everything that may be recomputed is, in every step");
}

// Of a measured step. False where the ranks could not agree.
bool Controller::adopt(budget::Timeline timeline) {
  if (wanted_ && std::find(keys_.begin(), keys_.end(), *wanted_) == keys_.end() &&
      ++attempts_ < kAttempts) {
    // One of the steps without what is to be measured. All ranks see the same parts.
    std::vector<std::int64_t> levels(timeline.units.size(), 0);
    return agree(levels);
  }
  Known known;
  known.timeline = std::move(timeline);
  known.keys = keys_;
  known.by_microbatch = by_microbatch_;
  const auto model = budget::Model::from(known.timeline);
  if (!model.ok()) {
    std::vector<std::int64_t> levels(known.timeline.units.size(), 0);
    give_up(model.error().text);
    return agree(levels);
  }
  if (suspect_) explain_suspect(model.value());
  if (measure_next_) known_.clear();  // what was measured before is no longer so
  measure_next_ = false;
  wanted_.reset();
  attempts_ = 0;
  if (!plan(known, model.value())) return false;
  auto fresh = std::make_shared<Plan>(*known.plan);
  for (const auto& [key, bytes] : input_bytes_) fresh->set_input_bytes(key, bytes);
  known.plan = fresh;
  if (!known.fits) {
    if (!std::exchange(said_floor_, true)) {
      show(true,
           "a memory budget of " + bytes_text(world_.budget) +
               " cannot be kept: with all that may be recomputed the peak is " +
               bytes_text(fresh->prediction().peak) + ", in " +
               known.timeline.describe(fresh->prediction().holder) + "; training goes on",
           fresh->prediction().peak);
    }
  } else {
    show(false, "budget " + bytes_text(world_.budget) + ": " + fresh->text(known.timeline.peak()),
         fresh->prediction().peak);
  }
  if (known_.size() >= kShapes) known_.clear();
  known_[shape_] = std::move(known);
  return true;
}

}  // namespace recoup
