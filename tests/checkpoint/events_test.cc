// What listeners hear of a region.
#include "recoup/checkpoint/events.h"

#include <thread>

#include "../../examples/activation_meter.h"
#include "fixtures.h"
#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using namespace testing;

// Notes everything that it hears, one line each, and the bytes allocated when a backward begins.
struct Notes : EventListener {
  void note(const RegionInfo& r, const std::string& what) {
    lines.push_back(what);
    last = r;
  }
  void forward_begins(const RegionInfo& r, const Tensors& inputs) noexcept override {
    note(r, "forward of " + std::to_string(inputs.size()));
  }
  void saved(const RegionInfo&, const at::Tensor& t) noexcept override {
    saved_bytes += static_cast<std::int64_t>(t.nbytes());
    ++count;
  }
  void forward_ends(const RegionInfo& r) noexcept override { note(r, "done"); }
  void backward_begins(const RegionInfo& r) noexcept override {
    note(r, "backward");
    if (meter != nullptr) bytes_at_backward = meter->bytes();
  }
  void recompute_begins(const RegionInfo& r) noexcept override { note(r, "recompute"); }
  void recompute_ends(const RegionInfo& r) noexcept override { note(r, "recomputed"); }
  void released(const RegionInfo& r) noexcept override { note(r, "released"); }

  std::vector<std::string> lines;
  RegionInfo last;
  const ActivationMeter* meter = nullptr;
  std::int64_t saved_bytes = 0, bytes_at_backward = 0;
  int count = 0;
};
using Lines = std::vector<std::string>;

TEST(Events, TheLifeOfARecomputedRegion) {
  const auto mlp = seeded_mlp();
  const auto x = input({16, 8});
  const auto notes = std::make_shared<Notes>();
  CheckpointOptions options;
  options.name = "layer 3 mlp";
  options.layer_number = 3;
  options.module = 1;
  options.microbatch = 7;
  options.listener = notes;
  {
    ActivationMeter meter(at::kCPU);
    notes->meter = &meter;
    const auto loss = checkpoint(of(mlp), {x}, options)[0].sum();
    EXPECT_EQ(notes->lines, (Lines{"forward of 1", "done"}));
    // Two linears: an input and a weight each; the activation's input.
    EXPECT_EQ(notes->count, 5);
    EXPECT_EQ(notes->saved_bytes, 4 * (16 * 8 + 2 * 8 * 32 + 2 * 16 * 32));
    const auto before = meter.bytes();
    loss.backward();
    // Nothing is recomputed yet; sum's own gradient is a view of the loss's.
    EXPECT_LE(notes->bytes_at_backward, before + 8);
    notes->meter = nullptr;
  }
  EXPECT_EQ(notes->lines,
            (Lines{"forward of 1", "done", "backward", "recompute", "recomputed", "released"}));
  EXPECT_EQ(notes->last.name, "layer 3 mlp");
  EXPECT_EQ(notes->last.layer_number, 3);
  EXPECT_EQ(notes->last.module, 1u);
  EXPECT_EQ(notes->last.microbatch, 7);
  EXPECT_TRUE(notes->last.recomputed);
  const auto run = notes->last.run;
  EXPECT_GT(run, 0u);
  checkpoint(of(mlp), {x}, options);
  EXPECT_GT(notes->last.run, run);
}

TEST(Events, AKeptRegionIsMeasuredAndChangesNothing) {
  const auto mlp = seeded_mlp(0.5);
  const auto notes = std::make_shared<Notes>();
  CheckpointOptions options;
  options.recompute = false;
  options.listener = notes;
  expect_same_bits(run(of(mlp), {input()}, mlp->parameters(), nullptr),
                   run(of(mlp), {input()}, mlp->parameters(), &options));
  EXPECT_EQ(notes->lines, (Lines{"forward of 1", "done", "backward", "released"}));
  EXPECT_FALSE(notes->last.recomputed);
  // What is held is what a plain run holds.
  const auto x = input({16, 8});
  const auto held = [&](bool measured) {
    ActivationMeter meter(at::kCPU);
    const auto y = measured ? checkpoint(of(mlp), {x}, options)[0] : mlp->forward(x);
    return meter.bytes();
  };
  EXPECT_EQ(held(true), held(false));
}

TEST(Events, ASecondBackwardIsAnnouncedAgain) {
  const auto notes = std::make_shared<Notes>();
  CheckpointOptions options;
  options.listener = notes;
  const auto x = input();
  for (const bool recompute : {true, false}) {
    options.recompute = recompute;
    const auto y = checkpoint([](const at::Tensor& t) { return t.exp().sin(); }, x, options).sum();
    for (int i = 0; i < 2; ++i) torch::autograd::grad({y}, {x}, {}, /*retain_graph=*/true);
    EXPECT_EQ(std::count(notes->lines.begin(), notes->lines.end(), "backward"), 2);
    notes->lines.clear();
  }
}

TEST(Events, AKeptRegionRefusesWhatAPlainRunRefuses) {
  CheckpointOptions options;
  options.recompute = false;
  options.listener = std::make_shared<Notes>();
  auto x = input() * 1;
  const auto y = checkpoint([](const at::Tensor& t) { return t.sin(); }, x, options);
  x.detach().add_(1);
  EXPECT_NE(error_of([&] { y.sum().backward(); }).find("modified by an in-place operation"),
            std::string::npos);
}

TEST(Events, AFailedForwardEndsToo) {
  const auto notes = std::make_shared<Notes>();
  CheckpointOptions options;
  options.listener = notes;
  for (const bool recompute : {true, false}) {
    options.recompute = recompute;
    EXPECT_THROW(checkpoint([](const Tensors&) -> Tensors { throw std::out_of_range("boom"); },
                            {input()}, options),
                 std::out_of_range);
    EXPECT_EQ(notes->lines, (Lines{"forward of 1", "done", "released"}));
    notes->lines.clear();
  }
}

TEST(Events, AllListenersHear) {
  EXPECT_EQ(all_listeners({}), nullptr);
  EXPECT_EQ(all_listeners({nullptr}), nullptr);
  const auto a = std::make_shared<Notes>(), b = std::make_shared<Notes>();
  EXPECT_EQ(all_listeners({nullptr, a}), a);
  CheckpointOptions options;
  options.listener = all_listeners({a, b});
  checkpoint(of(seeded_mlp()), {input()}, options)[0].sum().backward();
  EXPECT_EQ(a->lines.size(), 6u);
  EXPECT_EQ(a->lines, b->lines);
  EXPECT_EQ(a->count, b->count);
}

TEST(Events, WithoutAListenerANotRecomputedRegionIsAPlainCall) {
  CheckpointOptions options;
  options.recompute = false;
  const auto x = input();
  auto h = x * 2;
  const auto y = checkpoint([](const at::Tensor& t) { return t.sin(); }, h, options);
  h.detach().add_(1);
  const auto error = error_of([&] { y.sum().backward(); });
  EXPECT_NE(error, "");
  EXPECT_EQ(error.find("recoup: "), std::string::npos) << error;
}

}  // namespace
}  // namespace recoup
