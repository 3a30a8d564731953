#include "controller.h"

#include <algorithm>

#include "recoup/modules.h"

namespace recoup {

using budget::Level;

Decision Controller::decide(Decision most, std::int64_t layer, std::int64_t microbatch) {
  most.mlp_activation_only = 0;
  if (most.recompute_modules == 0) return most;
  const std::lock_guard<std::mutex> guard(mutex_);
  // The first part of each microbatch goes through checkpoint() in any case: it shows the shape.
  if (mode_ != Mode::kPlan || !strayed_.empty() || begun_.count(microbatch) == 0) return most;
  for (std::uint32_t left = most.recompute_modules; left != 0; left &= left - 1) {
    const std::uint32_t module = left & ~(left - 1);
    const auto* part = plan_->find({layer, module, microbatch});
    if (part == nullptr) continue;  // begins() will stray
    if (part->level == Level::kKept) most.recompute_modules &= ~module;
    if (part->level == Level::kActivation) most.mlp_activation_only = 1;
  }
  most.recompute_mlp = (most.recompute_modules & RECOUP_MLP) != 0;
  return most;
}

void Controller::evaluates() {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (mode_ == Mode::kUnknown) evaluated_ = true;
}

// The step's first part begins.
void Controller::start(const Shape& shape) {
  shape_ = shape;
  mode_ = Mode::kAll;
  if (warm_ups_ > 0 || hopeless_) return;
  auto entry = known_.find(shape);
  if (!measure_next_ && (entry != known_.end() || fit(shape))) {
    mode_ = Mode::kPlan;
    plan_ = known_.at(shape).plan;
  } else {
    mode_ = Mode::kMeasure;
    record_.clear();
  }
  // What an evaluation needed is none of the step's; nor is, where peaks are not restarted at each
  // step's end, anything before.
  budget::Memory ignored;
  if (evaluated_ || (mode_ == Mode::kMeasure && !world_.restarts)) {
    if (!read_memory(true, &ignored)) failed_ = true;
  }
}

Controller::Run Controller::begins(std::int64_t layer, std::uint64_t modules,
                                   std::int64_t microbatch, const Shape& first_input,
                                   std::int64_t input_bytes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (mode_ == Mode::kUnknown) start(first_input);
  begun_.insert(microbatch);
  const PartKey key{layer, static_cast<std::uint32_t>(modules & (~modules + 1)), microbatch};
  if (mode_ == Mode::kMeasure) input_bytes_[key] = input_bytes;
  if (mode_ != Mode::kPlan || !strayed_.empty()) return {true, mode_ == Mode::kMeasure};
  const auto* part = plan_->find(key);
  if (part == nullptr) {
    stray(key, "was in no measured step");
    return {};
  }
  if (part->level != Level::kActivation && part->input_bytes >= 0 &&
      part->input_bytes != input_bytes) {
    stray(key, "has an input of " + bytes_text(input_bytes) + ", where it was measured " +
                   bytes_text(part->input_bytes));
    return {};
  }
  return {part->level != Level::kKept, false};
}

void Controller::stray(PartKey part, const std::string& why) {
  strayed_ = "layer " + std::to_string(part.layer) +
             (part.microbatch > 0 ? ", microbatch " + std::to_string(part.microbatch) : "") + " " +
             why;
  wanted_ = part;
}

bool Controller::read_memory(bool restart, budget::Memory* memory) {
  const std::lock_guard<std::mutex> guard(memory_mutex_);
  return !closed_ && world_.memory(restart, memory);
}

void Controller::close() {
  const std::lock_guard<std::mutex> guard(memory_mutex_);
  closed_ = true;
}

budget::Memory Controller::measure() {
  budget::Memory memory;
  const bool known = read_memory(true, &memory);
  if (known && world_.show_memory) world_.show_memory(memory.bytes);
  if (!known) spoil();
  return memory;
}

void Controller::spoil() {
  const std::lock_guard<std::mutex> guard(mutex_);
  failed_ = true;
}

void Controller::unit_begins(std::uint64_t run, std::int64_t layer, const std::string& part,
                             std::uint32_t modules, std::int64_t microbatch,
                             budget::Memory memory) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (mode_ != Mode::kMeasure) return;
  by_microbatch_ =
      microbatch > 0 && seen_.insert({layer, part, microbatch}).second && by_microbatch_;
  keys_.push_back({layer, modules & (~modules + 1), microbatch});
  budget::Unit unit;
  unit.layer = layer;
  unit.part = part;
  unit.microbatch = microbatch - 1;
  unit.may_activation = modules == RECOUP_MLP;
  record_.forward_begins(run, std::move(unit), memory);
}

bool Controller::step_end(bool failed, bool skipped) {
  if (before_finish_) before_finish_();
  budget::Memory memory;
  const bool metered = read_memory(world_.restarts, &memory);
  const bool agreed = end(metered, memory, failed || skipped);
  tell();
  if (metered && world_.show_memory) world_.show_memory(memory.bytes);
  return metered && agreed;
}

bool Controller::end(bool metered, budget::Memory memory, bool no_step) {
  const std::lock_guard<std::mutex> guard(mutex_);
  ++step_;
  std::optional<budget::Timeline> timeline;
  std::string why;
  const bool ran = mode_ != Mode::kUnknown;
  if (mode_ == Mode::kMeasure) {
    auto finished = record_.finish(memory);
    if (finished.ok()) timeline = std::move(finished.value());
    if (!finished.ok()) why = finished.error().text;
  }
  bool unusable = !metered || no_step || failed_;
  if (mode_ == Mode::kPlan && !strayed_.empty()) measure_next_ = true;
  if (mode_ == Mode::kPlan && strayed_.empty() && !unusable) check(memory);
  // Of which at least one rank: is unusable; measures next; measured nothing; has other units.
  const auto units = timeline ? static_cast<std::int64_t>(timeline->units.size()) : 0;
  std::vector<std::int64_t> all{unusable, measure_next_, !timeline, units, -units};
  const bool agreed = agree(all);
  unusable = all[0] != 0 || !agreed;
  measure_next_ = all[1] != 0;
  if (!unusable && ran) {
    if (mode_ == Mode::kAll && warm_ups_ > 0) --warm_ups_;
    if (mode_ == Mode::kMeasure) {
      if (all[2] == 0 && all[3] == -all[4]) {
        if (!adopt(std::move(*timeline))) unusable = true;
      } else if (++attempts_ >= kAttempts) {
        give_up(why.empty() ? "the ranks that must decide alike measured different parts" : why);
      }
    }
  }
  if (!strayed_.empty()) {
    show(false, "step " + std::to_string(step_) + ": " + strayed_ +
                    "; the rest of the step recomputed everything, and the next is measured");
  }
  mode_ = Mode::kUnknown;
  plan_ = nullptr;
  strayed_.clear();
  begun_.clear();
  keys_.clear();
  seen_.clear();
  input_bytes_.clear();
  by_microbatch_ = true;
  evaluated_ = failed_ = false;
  step_began_ = Clock::now();
  return agreed;
}

}  // namespace recoup
