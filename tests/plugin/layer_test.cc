// recoup::Layer before an engine that only runs what it is given: what goes into a region, and in
// what form. "Tensors" are ints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "recoup/host.hpp"

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Ints = std::vector<int>;

// What the plugin decides next, and what it was told.
struct Seen {
  std::string part;
  std::int64_t layer;
  std::uint64_t modules;
  Ints inputs, outputs;
  bool keeps;
};
recoup_layer_v1 next;
std::vector<Seen> seen;
int closed;

recoup_status hook(void*, recoup_layer_v1* layer, char*, size_t) {
  layer->handle = reinterpret_cast<void*>(1);
  return RECOUP_OK;
}

const recoup_plugin_v1 kPlugin = {
    sizeof(recoup_plugin_v1),
    RECOUP_ABI_VERSION,
    "fake",
    "1.2.3",
    nullptr,
    [](void** plugin, const recoup_host_v1* host, char*, size_t) {
      *plugin = &next;
      return host->register_layer_hook(host->host, &hook, *plugin);
    },
    [](void*, const recoup_region_v1* region, const void* in, void* out, void* exception, char*,
       size_t) {
      const auto& inputs = *static_cast<const Ints*>(in);
      auto& outputs = *static_cast<Ints*>(out);
      int failed = region->forward(region->user, in, out, exception);
      if (failed == 0) {  // backward: the same again
        Ints again;
        region->forward(region->user, in, &again, exception);
        EXPECT_EQ(again, outputs);
      }
      if (failed == 0 && region->rest != nullptr) {  // which is never run again
        const auto middle = outputs;
        failed = region->rest(region->user, &middle, out, exception);
      }
      seen.push_back({region->part, region->layer_number, region->modules, inputs, outputs,
                      region->keep != nullptr});
      region->release(region->user);
      return failed == 0 ? RECOUP_OK : RECOUP_CALLBACK_FAILED;
    },
    [](void*) { ++closed; },
    RECOUP_ABI_MINOR,
    [](size_t) { return static_cast<const recoup_module_info_v1*>(nullptr); },
    [](char*, size_t) { return std::int32_t{0}; },
    [](void*, recoup_layer_v1* layer, char*, size_t) {
      layer->recompute_mlp = next.recompute_mlp;
      layer->recompute_modules = next.recompute_modules;
      layer->mlp_activation_only = next.mlp_activation_only;
      layer->distribute_saved_activations = next.distribute_saved_activations;
      layer->profile = next.profile;
      return RECOUP_OK;
    },
    [](void*, char*, size_t) {
      ++closed;
      return RECOUP_OK;
    },
    nullptr};  // keeps no budget

class LayerTest : public testing::Test {
 protected:
  void SetUp() override {
    next = {};
    seen.clear();
    closed = 0;
    options_.log = [this](recoup_log_level, const std::string& line) { lines_.push_back(line); };
    layer_ = recoup::Host(&kPlugin, options_).layer({3});
  }
  void recompute(bool activation = false) {
    next.recompute_mlp = 1;
    next.recompute_modules = RECOUP_MLP;
    next.mlp_activation_only = activation;
  }
  recoup::HostOptions options_;
  std::vector<std::string> lines_;
  recoup::Layer layer_;
};

TEST_F(LayerTest, AsksInEachForwardAndCopiesAreTheSameLayer) {
  const auto copy = layer_;
  const auto twice = [](int x) { return 2 * x; };
  EXPECT_EQ(layer_.mlp(twice, 4), 8);
  EXPECT_THAT(seen, IsEmpty());
  recompute();
  EXPECT_EQ(layer_.mlp(twice, 4), 8);
  EXPECT_EQ(copy.mlp(twice, 5), 10);
  EXPECT_TRUE(copy.recompute_mlp());
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[1].part, "mlp");
  EXPECT_EQ(seen[1].layer, 3);
  EXPECT_EQ(seen[1].modules, std::uint64_t{RECOUP_MLP});
  next = {};
  EXPECT_EQ(copy.mlp(twice, 4), 8);
  EXPECT_EQ(seen.size(), 2u);
}

// SwiGLU: two projections before the activation.
TEST_F(LayerTest, PartsTakeAndGiveAnyNumberOfTensors) {
  const auto rest = [](int gate, int up) { return gate * up; };
  for (int level = 0; level < 4; ++level) {
    seen.clear();
    if (level > 0) recompute(level == 2);
    next.profile = level == 3;
    const Ints kept = level == 0 ? Ints{} : level == 1 ? Ints{4} : Ints{5, 8};
    EXPECT_EQ(layer_.mlp([](int x) { return std::pair(x + 1, 2 * x); }, rest, 4), 40);
    EXPECT_EQ(level > 0 ? seen.back().inputs : kept, kept) << level;
    EXPECT_EQ(layer_.mlp([](int x) { return std::tuple(x + 1, 2 * x); },
                         [](std::tuple<int, int> t) { return std::get<0>(t) * std::get<1>(t); }, 4),
              40);
    EXPECT_EQ(level > 0 ? seen.back().inputs : kept, kept) << level;
    EXPECT_EQ(layer_.mlp(
                  [](int x) {
                    return Ints{x + 1, 2 * x};
                  },
                  [](const Ints& t) { return t[0] * t[1]; }, 4),
              40);
    EXPECT_EQ(level > 0 ? seen.back().inputs : kept, kept) << level;
  }
  // Several in and out, in order.
  EXPECT_EQ(
      layer_.checkpoint(
          "block", [](int a, int b, int c) { return std::tuple(c, b, a); }, std::tuple(1, 2, 3)),
      std::tuple(3, 2, 1));
  EXPECT_THAT(seen.back().inputs, ElementsAre(1, 2, 3));
  EXPECT_THAT(seen.back().outputs, ElementsAre(3, 2, 1));
  EXPECT_EQ(layer_.checkpoint(
                "block", [](const Ints& in) { return Ints(5, in[0]); }, Ints{7}),
            Ints(5, 7));
}

TEST_F(LayerTest, InThreePartsTheRestRunsOnce) {
  auto old = kPlugin;  // which knows no third part
  old.struct_size = RECOUP_PLUGIN_V1_MIN;
  const auto old_layer = recoup::Host(&old, options_).layer({3});
  for (int level = 0; level < 4; ++level) {
    seen.clear();
    if (level > 0) recompute(level == 2);
    next.profile = level == 3;
    int fc1 = 0, activation = 0, rest = 0;
    const auto run = [&](const recoup::Layer& layer) {
      return layer.mlp([&](int x) { return ++fc1, std::pair(x + 1, 2 * x); },
                       [&](int gate, int up) { return ++activation, gate * up; },
                       [&](int h) { return ++rest, std::pair(h, -h); }, 4);
    };
    EXPECT_EQ(run(layer_), std::pair(40, -40));
    EXPECT_EQ(fc1, level == 1 || level == 3 ? 2 : 1) << level;
    EXPECT_EQ(activation, level == 0 ? 1 : 2) << level;
    EXPECT_EQ(rest, level == 3 ? 2 : 1) << level;
    if (level > 0) {
      EXPECT_EQ(seen.back().inputs, level == 1 ? Ints{4} : (Ints{5, 8})) << level;
      EXPECT_THAT(seen.back().outputs, ElementsAre(40, -40));
      EXPECT_EQ(seen.back().part, level == 3 ? "mlp.rest" : "mlp");
    }
    rest = 0;
    EXPECT_EQ(run(old_layer), std::pair(40, -40));
    // What the hook said stays: it recomputes nothing.
    EXPECT_EQ(rest, 1);
  }
  old_layer.checkpoint(
      "block", [](int x) { return x; }, 1);
}

struct Module {
  int forward(int x) { return ++calls, 3 * x; }  // not const, as modules are
  int calls = 0;
};
struct Operator {
  int operator()(int x) { return 5 * x; }
};
// As torch::nn::ModuleHolder: operator-> of a const one gives a const module.
struct Holder {
  std::shared_ptr<Module> held = std::make_shared<Module>();
  const std::shared_ptr<Module>& ptr() const { return held; }
  const Module* operator->() const { return held.get(); }
  Module* operator->() { return held.get(); }
};

TEST_F(LayerTest, ModulesArePassedAsTheyAre) {
  const auto pointer = std::make_shared<Module>();
  const Holder holder;
  for (const bool on : {false, true}) {
    if (on) recompute();
    EXPECT_EQ(layer_.mlp(pointer, 4), 12);
    EXPECT_EQ(layer_.mlp(holder, 4), 12);
    EXPECT_EQ(layer_.mlp(std::make_shared<Operator>(), 4), 20);
    EXPECT_EQ(layer_.mlp(holder, pointer, 4), 36);
    EXPECT_EQ(layer_.mlp([mlp = holder](int x) mutable { return mlp->forward(x); }, 4), 12);
    EXPECT_EQ(layer_.mlp([only = std::make_unique<int>(7)](int x) { return x + *only; }, 4), 11);
  }
  EXPECT_EQ(pointer->calls, 2 + 4);  // each run twice where it is recomputed
}

TEST_F(LayerTest, OtherModulesByTheirBitOrTheirName) {
  const auto twice = [](int x) { return 2 * x; };
  EXPECT_EQ(layer_.run(RECOUP_CORE_ATTN, "core_attn", twice, 4), 8);
  EXPECT_THAT(seen, IsEmpty());
  next.recompute_modules = RECOUP_CORE_ATTN;
  EXPECT_EQ(layer_.run(RECOUP_CORE_ATTN, "core_attn", twice, 4), 8);
  EXPECT_EQ(layer_.checkpoint("core_attn", twice, 4), 8);
  EXPECT_EQ(layer_.checkpoint("full", twice, 4), 8);
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].modules, std::uint64_t{RECOUP_CORE_ATTN});
  EXPECT_EQ(seen[1].modules, std::uint64_t{RECOUP_CORE_ATTN});
  EXPECT_EQ(seen[2].modules, 0u);
}

TEST_F(LayerTest, OnePartAtLevelActivationIsSaidOnce) {
  recompute(/*activation=*/true);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(layer_.mlp([](int x) { return 2 * x; }, 4), 8);
  EXPECT_THAT(lines_, ElementsAre(HasSubstr("layer 3: its MLP comes as one function")));
}

TEST_F(LayerTest, WhatFollowsFc1IsNotDistributed) {
  recompute();
  next.distribute_saved_activations = 1;
  const auto same = [](const Ints& in) { return in; };
  layer_.set_input_keeper<Ints>(same, same);
  const auto twice = [](int x) { return 2 * x; };
  layer_.mlp(twice, twice, 1);
  EXPECT_TRUE(seen.back().keeps);
  next.mlp_activation_only = 1;
  layer_.mlp(twice, twice, 1);
  EXPECT_FALSE(seen.back().keeps);
}

TEST_F(LayerTest, ExceptionsComeBackAndTheLastLayerClosesThePlugin) {
  recompute();
  EXPECT_THROW(layer_.mlp([](int) -> int { throw std::out_of_range("boom"); }, 1),
               std::out_of_range);
  const auto copy = layer_;
  layer_ = {};
  EXPECT_EQ(closed, 0);
  EXPECT_EQ(recoup::Layer().mlp([](int x) { return x; }, 1), 1);
}

TEST_F(LayerTest, TheLastLayerClosesThePlugin) {
  layer_ = {};
  EXPECT_EQ(closed, 1);
}

}  // namespace
