// The events of one pipeline stage's step, in the order of the step. In forward a layer's saved
// tensors, attention's first, each with its transients on top; after the last layer final norm,
// logits and loss; in backward reruns, each GEMM's gradients, and saved tensors going. Gradients
// stand for the whole step (Megatron's buffer, ZeRO 2) or come in the first microbatch.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>

#include "layer_plan.h"

namespace recoup::models {

class Simulation {
 public:
  explicit Simulation(double start) : bytes_(start), peak_(start) {}

  void add(double amount) {
    bytes_ += amount;
    peak_ = std::max(peak_, bytes_);
  }
  void event(budget::EventKind kind, std::int32_t unit) {
    timeline.events.push_back(
        {kind, unit, std::llround(bytes_), std::llround(std::max(peak_, bytes_))});
    largest_ = std::max(largest_, peak_);
    peak_ = bytes_;
  }
  double largest() const { return std::max(largest_, peak_); }

  budget::Timeline timeline;

 private:
  double bytes_, peak_, largest_ = 0;
};

class Step {
 public:
  Step(std::vector<LayerPlan> layers, double at_rest, HeadBytes head, double once, bool last,
       bool gradients_come, double head_gradients, double embedding_gradients)
      : layers_(std::move(layers)),
        head_(head),
        last_(last),
        gradients_come_(gradients_come),
        head_gradients_(head_gradients),
        embedding_gradients_(embedding_gradients),
        sim_(at_rest + once) {}

  // `part` of a microbatch's layers, of its first ones.
  void forward(std::int64_t microbatch, std::size_t count) {
    const auto base = units_of(microbatch, count);
    for (std::size_t n = 0; n < count; ++n) {
      const auto& l = layers_[n];
      sim_.add(l.gathered);
      sim_.add(l.other);
      sim_.add(l.attention_forward), sim_.add(-l.attention_forward);
      auto u = base + first_unit_[n];
      for (const auto& unit : l.before) forward_unit(unit, u++);
      sim_.add(l.mlp_other);
      for (const auto& unit : l.mlp) {
        forward_unit(unit, u++);
        sim_.add(-unit.output);  // into the residual sum, which the next norm saves
      }
      sim_.add(-l.gathered);
    }
    if (last_) sim_.add(head_.saved + head_.logits);
  }

  void backward(std::int64_t microbatch, std::size_t count) {
    const auto base = bases_[microbatch];
    const bool come = gradients_come_ && !come_;
    come_ = true;
    if (last_) {
      sim_.add(head_.backward);
      sim_.add(-head_.freed - head_.backward / 2);  // the loss's own gradient is through
      gradients(head_gradients_, come);
      sim_.add(layers_.empty() ? 0 : layers_[0].output);
      sim_.add(-head_.backward / 2 - (head_.logits + head_.saved - head_.freed - head_.held));
    } else {
      sim_.add(layers_.empty() ? 0 : layers_[0].output);  // the gradient that comes in
    }
    for (auto n = count; n-- > 0;) {
      const auto& l = layers_[n];
      sim_.add(l.gathered);
      auto u = base + first_unit_[n] + static_cast<std::int32_t>(l.before.size() + l.mlp.size());
      if (l.mlp.empty()) {
        sim_.add(l.mlp_backward), sim_.add(-l.mlp_backward);
        gradients(l.fc2_gradients, come), gradients(l.fc1_gradients, come);
      }
      for (const auto& unit : l.mlp) {
        begin_backward(unit, --u);
        sim_.add(l.mlp_backward);
        gradients(l.fc2_gradients, come);
        sim_.add(-unit.freed);
        sim_.event(budget::EventKind::kBackwardEnd, u);
        sim_.add(l.output);
        gradients(l.fc1_gradients, come);
        sim_.add(-l.mlp_backward - l.output);
      }
      sim_.add(l.output);  // through the norm
      sim_.add(-l.output - l.mlp_other);
      gradients(l.out_gradients, come);
      for (auto k = l.before.size(); k-- > 0;) {
        begin_backward(l.before[k], --u);
        const double transient = k + 1 == l.before.size() ? l.attention_backward : 0;
        sim_.add(transient);
        sim_.add(-l.before[k].freed - transient);
        sim_.event(budget::EventKind::kBackwardEnd, u);
      }
      if (l.before.empty()) sim_.add(l.attention_backward), sim_.add(-l.attention_backward);
      // What the query, key and value GEMM and the norm before it saved goes last.
      const double tail = std::min(l.other, 2 * l.output);
      sim_.add(tail - l.other);
      sim_.add(l.qkv_backward + l.output);
      gradients(l.qkv_gradients, come);
      sim_.add(-l.qkv_backward - l.output - tail);
      sim_.add(-l.gathered);
    }
    gradients(embedding_gradients_, come);
    if (!layers_.empty()) sim_.add(-layers_[0].output);
    if (last_) sim_.add(-head_.held);
  }

  void finish() { sim_.event(budget::EventKind::kStepEnd, -1); }
  double largest() const { return sim_.largest(); }
  budget::Timeline take() { return std::move(sim_.timeline); }

 private:
  // Describes the units of a microbatch's first `count` layers; the number of the first.
  std::int32_t units_of(std::int64_t microbatch, std::size_t count) {
    const auto base = static_cast<std::int32_t>(sim_.timeline.units.size());
    bases_[microbatch] = base;
    for (std::size_t n = 0; n < count; ++n) {
      const auto first = static_cast<std::int32_t>(sim_.timeline.units.size()) - base;
      if (first_unit_.size() <= n) first_unit_.push_back(first);
      for (const auto* list : {&layers_[n].before, &layers_[n].mlp}) {
        for (const auto& unit : *list) sim_.timeline.units.push_back(describe(unit, n, microbatch));
      }
    }
    return base;
  }

  static budget::Unit describe(const Unit& unit, std::size_t layer, std::int64_t microbatch) {
    budget::Unit b;
    b.layer = static_cast<std::int64_t>(layer) + 1;
    b.part = unit.part;
    b.microbatch = microbatch;
    b.may_full = unit.may_full;
    b.may_activation = unit.may_activation;
    b.level = budget::Level::kFull;  // in this step, even where it may not be chosen
    b.fc1_bytes = std::llround(unit.kept);
    b.output_bytes = std::llround(unit.output);
    b.holds_fc1 = true;
    b.cost_ns = {0, std::llround(unit.activation_ns), std::llround(unit.full_ns)};
    return b;
  }

  void forward_unit(const Unit& unit, std::int32_t u) {
    sim_.event(budget::EventKind::kForwardBegin, u);
    sim_.add(unit.freed + unit.output);
    sim_.add(-unit.freed);
    sim_.event(budget::EventKind::kForwardEnd, u);
  }
  void begin_backward(const Unit& unit, std::int32_t u) {
    sim_.event(budget::EventKind::kBackwardBegin, u);
    sim_.add(unit.freed);
    sim_.event(budget::EventKind::kRerunEnd, u);
  }
  void gradients(double amount, bool come) {
    sim_.add(amount);
    if (!come) sim_.add(-amount);  // added to what is there
  }

  std::vector<LayerPlan> layers_;
  HeadBytes head_;
  bool last_, gradients_come_, come_ = false;
  double head_gradients_, embedding_gradients_;
  std::map<std::int64_t, std::int32_t> bases_;  // the first unit of each microbatch
  std::vector<std::int32_t> first_unit_;        // of each layer, within its microbatch
  Simulation sim_;
};

}  // namespace recoup::models
