// A training step as allocations, written without the budget's formula: layers with attention and
// an MLP, gradients that come in the first microbatch, logits, an optimizer; under any schedule.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "recoup/budget/model.h"
#include "recoup/budget/timeline.h"

namespace recoup::budget::testing {

// Bytes of one layer.
struct LayerShape {
  std::int64_t attention,
      attention_transient;           // saved by attention; held for a moment in both ways
  std::int64_t x, h, s, mask, r, y;  // MLP: input, fc1's output, activation's, dropout's, fc2's
  std::int64_t gradients;            // of the layer's weights
  std::int64_t full_ns, activation_ns;
};

struct StepShape {
  std::vector<LayerShape> layers;
  std::vector<std::pair<char, std::int64_t>> schedule;  // 'F' or 'B' and a microbatch
  std::int64_t base = 0, logits = 0, optimizer = 0;
  bool keeps_gradients = false;  // from the step before
  bool frozen = false;           // fc1's weight: the kept forward does not save x
  bool two_levels = true;
  bool holds_fc1 = true;  // as recoup's MLP in two parts; else freed as soon as it can be
};

class Step {
 public:
  explicit Step(const StepShape& shape) : shape_(shape) {
    units_.resize(shape.layers.size() * microbatches());
    for (const auto& [way, m] : shape.schedule) way == 'F' ? forward(m) : backward(m);
    both(shape.optimizer), both(-shape.optimizer);
    event(EventKind::kStepEnd, -1);
  }

  std::size_t units() const { return units_.size(); }

  std::int64_t cost(const Decisions& d) const {
    std::int64_t sum = 0;
    for (std::size_t u = 0; u < d.size(); ++u) sum += units_[u].cost_ns[index(d[u])];
    return sum;
  }

  std::int64_t peak(const Decisions& d) const {
    std::int64_t bytes = shape_.base, most = bytes;
    for (const auto& op : ops_) {
      bytes += op.amount[op.unit < 0 ? 0 : index(d[static_cast<std::size_t>(op.unit)])];
      most = std::max(most, bytes);
    }
    return most;
  }

  Timeline run(const Decisions& d) const {
    Timeline t;
    t.units = units_;
    for (std::size_t u = 0; u < d.size(); ++u) t.units[u].level = d[u];
    std::int64_t bytes = shape_.base, most = bytes;
    for (const auto& op : ops_) {
      bytes += op.amount[op.unit < 0 ? 0 : index(d[static_cast<std::size_t>(op.unit)])];
      most = std::max(most, bytes);
      if (op.event >= 0) {
        t.events.push_back({static_cast<EventKind>(op.event), op.event_unit, bytes, most});
        most = bytes;
      }
    }
    return t;
  }

 private:
  struct Op {
    PerLevel amount{};
    std::int32_t unit = -1, event = -1, event_unit = -1;
  };

  std::size_t microbatches() const {
    return static_cast<std::size_t>(std::count_if(shape_.schedule.begin(), shape_.schedule.end(),
                                                  [](const auto& s) { return s.first == 'F'; }));
  }
  void both(std::int64_t amount) { ops_.push_back({{amount, amount, amount}, 0, -1, -1}); }
  void by_level(std::int32_t u, std::int64_t kept, std::int64_t activation, std::int64_t full) {
    ops_.push_back({{kept, activation, full}, u, -1, -1});
  }
  void event(EventKind kind, std::int32_t u) {
    ops_.push_back({{}, -1, static_cast<std::int32_t>(kind), u});
  }
  std::int32_t unit(std::int64_t m, std::size_t layer) const {
    return static_cast<std::int32_t>(m * static_cast<std::int64_t>(shape_.layers.size()) +
                                     static_cast<std::int64_t>(layer));
  }

  void forward(std::int64_t m) {
    for (std::size_t n = 0; n < shape_.layers.size(); ++n) {
      const auto& l = shape_.layers[n];
      const auto u = unit(m, n);
      auto& described = units_[static_cast<std::size_t>(u)];
      described.layer = static_cast<std::int64_t>(n) + 1;
      described.microbatch = m;
      described.may_activation = shape_.two_levels;
      described.fc1_bytes = l.h;
      described.output_bytes = l.y;
      described.holds_fc1 = shape_.holds_fc1;
      described.cost_ns = {0, l.activation_ns, l.full_ns};
      if (shape_.frozen) described.extra_bytes = {0, 0, l.x};
      both(l.attention_transient), both(l.attention - l.attention_transient);
      both(l.x);
      event(EventKind::kForwardBegin, u);
      both(l.h), both(l.s);
      if (!shape_.holds_fc1) by_level(u, 0, 0, -l.h);
      both(l.mask + l.r);
      by_level(u, 0, -l.mask, -l.mask);
      both(l.y), both(-l.s);
      by_level(u, 0, -l.r, -l.r - (shape_.holds_fc1 ? l.h : 0));
      event(EventKind::kForwardEnd, u);
      both(l.y), both(-l.y);  // the residual sum, in place of the output
      if (shape_.frozen) by_level(u, -l.x, -l.x, 0);
    }
    both(shape_.logits);
  }

  void gradients(std::int64_t bytes, bool first) {
    both(bytes);
    if (!first || shape_.keeps_gradients) both(-bytes);
  }

  void backward(std::int64_t m) {
    const bool first = backwards_++ == 0;
    both(shape_.logits), both(-2 * shape_.logits);
    for (auto n = shape_.layers.size(); n-- > 0;) {
      const auto& l = shape_.layers[n];
      const auto u = unit(m, n);
      both(l.y);  // the output's gradient
      event(EventKind::kBackwardBegin, u);
      by_level(u, 0, 0, l.h), by_level(u, 0, l.s, l.s), by_level(u, 0, l.mask + l.r, l.mask + l.r);
      by_level(u, 0, -l.s, -l.s);
      if (shape_.frozen) by_level(u, 0, 0, -l.x);
      event(EventKind::kRerunEnd, u);
      both(l.r), both(-l.r);
      both(l.s), both(-l.mask - l.r), both(l.h), both(-l.s - l.h);
      event(EventKind::kBackwardEnd, u);
      gradients(l.gradients, first);
      both(l.x), both(-l.h);
      if (!shape_.frozen) both(-l.x);
      both(-l.x);
      both(l.attention_transient), both(-l.attention_transient - l.attention), both(-l.y);
    }
  }

  StepShape shape_;
  std::vector<Unit> units_;
  std::vector<Op> ops_;
  int backwards_ = 0;
};

using Schedule = std::vector<std::pair<char, std::int64_t>>;

inline Schedule gradient_accumulation(std::int64_t microbatches) {
  Schedule s;
  for (std::int64_t m = 0; m < microbatches; ++m) s.push_back({'F', m}), s.push_back({'B', m});
  return s;
}

inline Schedule one_f_one_b(std::int64_t microbatches, std::int64_t in_flight) {
  Schedule s;
  std::int64_t b = 0;
  for (std::int64_t m = 0; m < microbatches; ++m) {
    s.push_back({'F', m});
    if (m + 1 >= in_flight) s.push_back({'B', b++});
  }
  while (b < microbatches) s.push_back({'B', b++});
  return s;
}

// Sizes at random, the same on every machine.
class Dice {
 public:
  explicit Dice(std::uint32_t seed) : generator_(seed) {}
  std::int64_t roll(std::int64_t low, std::int64_t high) {
    return low +
           static_cast<std::int64_t>(generator_() % static_cast<std::uint64_t>(high - low + 1));
  }

 private:
  std::mt19937 generator_;
};

inline StepShape random_step(Dice& dice, std::size_t layers, bool alike, Schedule schedule) {
  StepShape step;
  step.schedule = std::move(schedule);
  for (std::size_t n = 0; n < layers; ++n) {
    if (alike && n > 0) {
      step.layers.push_back(step.layers[0]);
      continue;
    }
    LayerShape l{};
    l.attention = 512 * dice.roll(10, 400);
    l.attention_transient = 512 * dice.roll(0, 200);
    l.x = l.y = 512 * dice.roll(5, 50);
    l.h = l.r = l.s = 512 * dice.roll(20, 200);
    l.mask = dice.roll(0, 1) * l.h;
    l.gradients = 512 * dice.roll(0, 300);
    l.full_ns = dice.roll(500, 3000);
    l.activation_ns = dice.roll(20, 300);
    step.layers.push_back(l);
  }
  step.base = 512 * dice.roll(0, 5000);
  step.logits = 512 * dice.roll(0, 600);
  step.optimizer = 512 * dice.roll(0, 100);
  step.keeps_gradients = dice.roll(0, 1) != 0;
  return step;
}

}  // namespace recoup::budget::testing
