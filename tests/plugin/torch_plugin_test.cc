// The LibTorch plugin, loaded as a trainer loads it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>
#include <fstream>

#include "../../examples/activation_meter.h"
#include "recoup/host.hpp"

namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class TorchPlugin : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "1", 1);
    options_.name = "torch_plugin_test";
    options_.torch_version = TORCH_VERSION;
    options_.log = [](recoup_log_level, const std::string&) {};
  }
  void TearDown() override {
    for (const char* name : {"RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "RECOUP_PROFILE", "RECOUP_TRACE",
                             "RECOUP_CHECK", "RECOUP_MEMORY_BUDGET"}) {
      ::unsetenv(name);
    }
  }
  static std::string content(const std::string& path) {
    std::ifstream file(path);
    return {(std::istreambuf_iterator<char>(file)), {}};
  }

  std::string error() {
    try {
      recoup::Host host(RECOUP_PLUGIN, options_);
    } catch (const recoup::LoadError& e) {
      return e.what();
    }
    return "loaded";
  }
  recoup::HostOptions options_;
};

TEST_F(TorchPlugin, RefusesAnotherLibTorch) {
  options_.torch_version = "1.0.0";
  EXPECT_THAT(error(), HasSubstr("was built with LibTorch " TORCH_VERSION ", the host with 1.0.0"));
  options_.torch_version.reset();
  EXPECT_THAT(error(), HasSubstr("the host without it; build it for the host's: cmake "
                                 "-S RECOUP -B build -DCMAKE_PREFIX_PATH=FOLDER"));
}

TEST_F(TorchPlugin, ChecksPointsOnlyTheLayersItChose) {
  const recoup::Host recoup(RECOUP_PLUGIN, options_);
  const auto w1 = at::randn({8, 32}).requires_grad_(), w2 = at::randn({32, 8}).requires_grad_();
  const auto x = at::randn({16, 8}).requires_grad_();
  std::vector<at::Tensor> gradients;
  for (std::int64_t n : {1, 2}) {
    ActivationMeter meter(at::kCPU);
    const auto y =
        recoup.layer({n}).mlp([=](const at::Tensor& in) { return at::gelu(in.mm(w1)).mm(w2); }, x);
    EXPECT_EQ(meter.bytes() - y.numel() * 4, n == 1 ? 0 : 2 * 16 * 32 * 4);
    gradients.push_back(torch::autograd::grad({y.sum()}, {x})[0]);
  }
  EXPECT_TRUE(at::equal(gradients[0], gradients[1]));
}

TEST_F(TorchPlugin, TheHostsExceptionsComeBackAsTheyWere) {
  const auto layer = recoup::Host(RECOUP_PLUGIN, options_).layer({1});
  const auto x = at::randn({4}).requires_grad_();
  EXPECT_THROW(
      layer.mlp([](const at::Tensor&) -> at::Tensor { throw std::out_of_range("boom"); }, x),
      std::out_of_range);
  int calls = 0;
  const auto y = layer.mlp(
      [&](const at::Tensor& in) -> at::Tensor {
        if (++calls == 2) throw std::out_of_range("boom");
        return in.exp().sin();
      },
      x);
  EXPECT_THROW(y.sum().backward(), std::out_of_range);
}

TEST_F(TorchPlugin, LayersAndGraphsOutliveTheHost) {
  at::Tensor y;
  const auto x = at::randn({4}).requires_grad_();
  std::weak_ptr<int> alive;
  {
    auto token = std::make_shared<int>(0);
    alive = token;
    const auto layer = [&] { return recoup::Host(RECOUP_PLUGIN, options_).layer({1}); }();
    y = layer.mlp([token](const at::Tensor& in) { return in.exp().sin(); }, x);
  }
  EXPECT_FALSE(alive.expired());
  y.sum().backward();
  EXPECT_TRUE(alive.expired());  // released with the graph's saved tensors
  EXPECT_TRUE(at::allclose(x.grad(), x.exp().cos() * x.exp()));
}

// What goes through the C interface, called rightly and wrongly.
class RawRegion : public TorchPlugin {
 protected:
  void SetUp() override {
    TorchPlugin::SetUp();
    void* library = dlopen(RECOUP_PLUGIN, RTLD_NOW);
    api_ = reinterpret_cast<recoup_entry>(dlsym(library, RECOUP_ENTRY_SYMBOL))(1);
    region_.struct_size = offsetof(recoup_region_v1, keep);  // a host of before keep and restore
    region_.name = "r";
    region_.user = &released_;
    region_.forward = [](void*, const void*, void*, void*) -> std::int32_t { return 1; };
    region_.release = [](void* user) { ++*static_cast<int*>(user); };
    recoup_host_v1 host{};
    host.struct_size = sizeof(host);
    host.torch_version = TORCH_VERSION;
    host.modules = RECOUP_MLP;
    host.log = [](void*, recoup_log_level, const char*) {};
    host.register_layer_hook = [](void*, recoup_layer_hook, void*) { return RECOUP_OK; };
    ASSERT_EQ(api_->init(&plugin_, &host, error_, sizeof(error_)), RECOUP_OK) << error_;
  }
  void TearDown() override {
    api_->finalize(plugin_);
    TorchPlugin::TearDown();
  }
  recoup_status checkpoint(void* plugin, const recoup_region_v1* region) {
    exception_ = nullptr;
    return api_->checkpoint(plugin, region, &in_, &out_, &exception_, error_, sizeof(error_));
  }
  const recoup_plugin_v1* api_ = nullptr;
  recoup_region_v1 region_{};
  void* plugin_ = nullptr;
  int released_ = 0;
  std::vector<at::Tensor> in_{at::ones({1})}, out_;
  std::exception_ptr exception_;
  char error_[256] = "";
};

TEST_F(RawRegion, IsReleasedOnceWhateverHappens) {
  EXPECT_EQ(checkpoint(nullptr, &region_), RECOUP_INVALID_ARGUMENT);
  EXPECT_THAT(error_, HasSubstr("the plugin is null"));
  EXPECT_EQ(released_, 1);
  EXPECT_EQ(checkpoint(plugin_, &region_), RECOUP_CALLBACK_FAILED);
  EXPECT_THAT(error_, HasSubstr("recoup: r: the host's function failed"));
  EXPECT_EQ(released_, 2);
  EXPECT_TRUE(exception_ != nullptr);
  auto wrong = region_;
  wrong.forward = nullptr;
  EXPECT_EQ(checkpoint(plugin_, &wrong), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(released_, 3);
  EXPECT_EQ(api_->checkpoint(plugin_, &region_, nullptr, &out_, &exception_, error_, 1),
            RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(released_, 4);
  wrong = region_;
  wrong.release = nullptr;
  EXPECT_EQ(checkpoint(plugin_, &wrong), RECOUP_INVALID_ARGUMENT);
  wrong = region_;
  wrong.struct_size = RECOUP_REGION_V1_MIN - 1;
  EXPECT_EQ(checkpoint(plugin_, &wrong), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(checkpoint(plugin_, nullptr), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(released_, 4);
  EXPECT_THAT(out_, IsEmpty());
}

TEST_F(RawRegion, NeedsAnOpenPluginOfThisLibrary) {
  char why[256] = "";
  void* other = dlopen(RECOUP_POLICY_PLUGIN, RTLD_NOW);
  const auto* policy = reinterpret_cast<recoup_entry>(dlsym(other, RECOUP_ENTRY_SYMBOL))(1);
  recoup_host_v1 host{};
  host.struct_size = sizeof(host);
  host.modules = RECOUP_MLP;
  host.log = [](void*, recoup_log_level, const char*) {};
  host.register_layer_hook = [](void*, recoup_layer_hook, void*) { return RECOUP_OK; };
  void* theirs = nullptr;
  ASSERT_EQ(policy->init(&theirs, &host, why, sizeof(why)), RECOUP_OK) << why;
  EXPECT_EQ(checkpoint(theirs, &region_), RECOUP_INVALID_ARGUMENT);
  EXPECT_THAT(error_, HasSubstr("no plugin of this library"));
  EXPECT_EQ(checkpoint(&host, &region_), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(policy->close(plugin_, why, sizeof(why)), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(policy->close(theirs, why, sizeof(why)), RECOUP_OK);
  ASSERT_EQ(api_->close(plugin_, why, sizeof(why)), RECOUP_OK) << why;
  EXPECT_EQ(checkpoint(std::exchange(plugin_, nullptr), &region_), RECOUP_INVALID_ARGUMENT);
  EXPECT_THAT(error_, HasSubstr("closed already"));
  EXPECT_EQ(released_, 3);
}

TEST_F(RawRegion, TheEnginesOwnErrorIsToldFromTheHosts) {
  at::SavedTensorDefaultHooks::disable("for this test");
  EXPECT_EQ(checkpoint(plugin_, &region_), RECOUP_ENGINE_FAILED);
  at::SavedTensorDefaultHooks::enable();
  EXPECT_THAT(error_,
              AllOf(HasSubstr("recoup: r: the checkpoint failed"), HasSubstr("for this test")));
  EXPECT_TRUE(exception_ != nullptr);
  EXPECT_EQ(released_, 1);
}

// Three GEMMs, two of them before the activation.
TEST_F(TorchPlugin, SwiGluIsBitEqualAtEachLevel) {
  const auto gate = at::randn({8, 32}).requires_grad_(), up = at::randn({8, 32}).requires_grad_(),
             down = at::randn({32, 8}).requires_grad_();
  const auto x = at::randn({16, 8}).requires_grad_();
  const std::string mlp = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";
  options_.modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION;
  ::unsetenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS");
  std::vector<std::vector<at::Tensor>> results;
  std::vector<std::int64_t> saved;
  for (const auto& yaml : {std::string(), mlp, mlp + "mlp_recompute_level: activation\n"}) {
    options_.config_yaml = yaml;
    const auto layer = recoup::Host(RECOUP_PLUGIN, options_).layer({1});
    ActivationMeter meter(at::kCPU);
    const auto y = layer.mlp(
        [=](const at::Tensor& in) { return std::pair(in.mm(gate), in.mm(up)); },
        [=](const at::Tensor& g, const at::Tensor& u) { return (at::silu(g) * u).mm(down); }, x);
    saved.push_back(meter.bytes() - y.numel() * 4);
    results.push_back(torch::autograd::grad({y.sum()}, {x, gate, up, down}));
    results.back().push_back(y.detach());
  }
  const std::int64_t hidden = 16 * 32 * 4;
  EXPECT_THAT(saved, ElementsAre(4 * hidden, 0, 2 * hidden));
  for (const auto& result : results) {
    for (std::size_t i = 0; i < result.size(); ++i)
      EXPECT_TRUE(at::equal(result[i], results[0][i]));
  }
}

// What is held is the same; the third part is never entered again.
TEST_F(TorchPlugin, SwiGluInThreePartsIsBitEqualAtEachLevel) {
  const auto gate = at::randn({8, 32}).requires_grad_(), up = at::randn({8, 32}).requires_grad_(),
             down = at::randn({32, 8}).requires_grad_();
  const auto x = at::randn({16, 8}).requires_grad_();
  const std::string mlp = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";
  options_.modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION;
  ::unsetenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS");
  std::vector<std::vector<at::Tensor>> results;
  std::vector<std::int64_t> saved, runs;
  for (const auto& yaml : {std::string(), mlp, mlp + "mlp_recompute_level: activation\n"}) {
    options_.config_yaml = yaml;
    const auto layer = recoup::Host(RECOUP_PLUGIN, options_).layer({1});
    int fc1 = 0, activation = 0, rest = 0;
    ActivationMeter meter(at::kCPU);
    const auto y = layer.mlp(
        [&](const at::Tensor& in) { return ++fc1, std::pair(in.mm(gate), in.mm(up)); },
        [&](const at::Tensor& g, const at::Tensor& u) { return ++activation, at::silu(g) * u; },
        [&](const at::Tensor& h) { return ++rest, h.mm(down); }, x);
    saved.push_back(meter.bytes() - y.numel() * 4);
    results.push_back(torch::autograd::grad({y.sum()}, {x, gate, up, down}));
    results.back().push_back(y.detach());
    runs.insert(runs.end(), {fc1, activation, rest});
  }
  const std::int64_t hidden = 16 * 32 * 4;
  EXPECT_THAT(saved, ElementsAre(4 * hidden, 0, 2 * hidden));
  EXPECT_THAT(runs, ElementsAre(1, 1, 1, 2, 2, 1, 1, 2, 1));
  for (const auto& result : results) {
    for (std::size_t i = 0; i < result.size(); ++i)
      EXPECT_TRUE(at::equal(result[i], results[0][i]));
  }
}

TEST_F(TorchPlugin, TheEnvironmentAsksForValuesToBeCompared) {
  std::vector<std::string> warnings;
  options_.log = [&](recoup_log_level level, const std::string& line) {
    if (level == RECOUP_LOG_WARNING) warnings.push_back(line);
  };
  const auto x = at::randn({100, 100}).requires_grad_();
  const auto backward = [&](const char* check) -> std::string {
    check != nullptr ? ::setenv("RECOUP_CHECK", check, 1) : ::unsetenv("RECOUP_CHECK");
    warnings.clear();
    const auto layer = recoup::Host(RECOUP_PLUGIN, options_).layer({1});
    int calls = 0;
    try {
      layer.mlp([&](const at::Tensor& in) { return (in * ++calls).exp().sin(); }, x)
          .sum()
          .backward();
    } catch (const std::exception& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(backward(nullptr), "");
  EXPECT_THAT(warnings, Not(testing::Contains(HasSubstr("RECOUP_CHECK"))));
  EXPECT_THAT(backward("values"), AllOf(HasSubstr("recoup: layer 1 mlp: saved tensor"),
                                        HasSubstr("3 of its 3 blocks of 4096 values differ")));
  EXPECT_THAT(warnings, testing::Contains(HasSubstr("RECOUP_CHECK=values is set")));
  EXPECT_THAT(backward("copy"), HasSubstr("of its 10000 values differ, the first at [0, 0]"));
}

TEST_F(TorchPlugin, AModuleHolderIsPassedAsItIs) {
  const torch::nn::Linear linear(8, 8);  // const: its operator-> gives a const module
  const auto x = at::randn({4, 8}).requires_grad_();
  const auto layer = recoup::Host(RECOUP_PLUGIN, options_).layer({1});
  const auto y = layer.mlp(linear, x);
  y.sum().backward();
  EXPECT_TRUE(at::equal(y, linear.ptr()->forward(x)));
  EXPECT_TRUE(linear.ptr()->weight.grad().defined());
}

TEST_F(TorchPlugin, ALayerThatNeverRunsIsSaidOnce) {
  std::vector<std::string> warnings;
  options_.log = [&](recoup_log_level level, const std::string& line) {
    if (level == RECOUP_LOG_WARNING && line.find("decides") == std::string::npos) {
      warnings.push_back(line);
    }
  };
  ::setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "3", 1);
  const auto x = at::randn({4}).requires_grad_();
  const auto step = [&](const recoup::Layer& layer) {
    layer.mlp([](const at::Tensor& in) { return in.exp().sin(); }, x).sum().backward();
  };
  {
    recoup::Host recoup(RECOUP_PLUGIN, options_);
    const auto one = recoup.layer({1});
    const auto others =
        std::vector<recoup::Layer>{recoup.layer({2}), recoup.layer({3}), recoup.layer({4})};
    step(one);
    EXPECT_THAT(warnings, IsEmpty());  // the step may go on
    step(one);
    EXPECT_THAT(warnings, ElementsAre(AllOf(HasSubstr("layers 2-3 (mlp)"),
                                            HasSubstr("no checkpoint of that ran"))));
    step(one);
  }
  EXPECT_EQ(warnings.size(), 1u);
  warnings.clear();
  {
    recoup::Host recoup(RECOUP_PLUGIN, options_);
    const auto layers = std::vector<recoup::Layer>{recoup.layer({1}), recoup.layer({2})};
    for (int i = 0; i < 3; ++i) {
      for (const auto& layer : layers) step(layer);
    }
  }
  EXPECT_THAT(warnings, IsEmpty());
  {
    recoup::Host recoup(RECOUP_PLUGIN, options_);
    recoup.layer({1});
  }
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("layer 1 (mlp)")));  // said at the end
}

TEST_F(TorchPlugin, AProfileKeepsTwoPartsOfALayerApart) {
  const auto path = testing::TempDir() + "parts.json";
  std::vector<std::string> warnings;
  options_.log = [&](recoup_log_level level, const std::string& line) {
    if (level == RECOUP_LOG_WARNING) warnings.push_back(line);
  };
  ::setenv("RECOUP_PROFILE", path.c_str(), 1);
  {
    recoup::Host recoup(RECOUP_PLUGIN, options_);
    const auto layer = recoup.layer({3});
    const auto x = at::randn({4, 4}).requires_grad_();
    for (const char* part : {"mlp block", "attention block"}) {
      layer.checkpoint(
          part, [](const at::Tensor& in) { return in.exp().sin(); }, x);
    }
    recoup.close();
  }
  EXPECT_THAT(content(path), AllOf(HasSubstr("\"part\": \"mlp block\""),
                                   HasSubstr("\"part\": \"attention block\""),
                                   HasSubstr("\"layer\": 3"), HasSubstr("\"saved_bytes\": 64")));
  EXPECT_THAT(warnings, testing::Contains(AllOf(HasSubstr("RECOUP_PROFILE is set"),
                                                HasSubstr("recomputes NOTHING"))));
}

TEST_F(TorchPlugin, OutputsAreCheckedBeforeTheRun) {
  const auto path = testing::TempDir() + "output.json";
  std::remove(path.c_str());
  ::setenv("RECOUP_TRACE", "/no/such/folder/trace.json", 1);
  EXPECT_THAT(error(), AllOf(HasSubstr("RECOUP_TRACE=/no/such/folder/trace.json"),
                             HasSubstr("No such file or directory")));
  ::setenv("RECOUP_TRACE", "/dev/full", 1);
  EXPECT_THAT(error(), HasSubstr("RECOUP_TRACE=/dev/full: is no regular file"));
  ::setenv("RECOUP_TRACE", testing::TempDir().c_str(), 1);
  EXPECT_THAT(error(), HasSubstr("is no regular file"));
  ::setenv("RECOUP_TRACE", path.c_str(), 1);
  ::setenv("RECOUP_PROFILE", (testing::TempDir() + "./output.json").c_str(), 1);
  EXPECT_THAT(error(), HasSubstr("each needs a file of its own"));
  ::unsetenv("RECOUP_PROFILE");
  EXPECT_EQ(error(), "loaded");  // nothing of the refused ones is left
  const recoup::Host recoup(RECOUP_PLUGIN, options_);
  EXPECT_THAT(error(), HasSubstr("each needs a file of its own"));
}

// What is on the disk while a run goes on is complete.
TEST_F(TorchPlugin, ATraceIsWrittenWhileTheRunGoesOn) {
  const auto path = testing::TempDir() + "trace.json";
  std::remove(path.c_str());
  ::setenv("RECOUP_TRACE", path.c_str(), 1);
  recoup::Host recoup(RECOUP_PLUGIN, options_);
  const auto layer = recoup.layer({1});
  const auto x = at::randn({4}).requires_grad_();
  const auto spans = [&] {
    const auto text = content(path);
    std::size_t count = 0;
    for (auto at = text.find("\"ph\""); at != std::string::npos; at = text.find("\"ph\"", at + 1)) {
      ++count;
    }
    EXPECT_EQ(text.substr(text.size() - 5), "\n ]}\n");
    return count;
  };
  for (int i = 0; i < 200; ++i) {
    layer.mlp([](const at::Tensor& in) { return in.exp().sin(); }, x).sum().backward();
  }
  EXPECT_EQ(spans(), 256u);
  recoup.close();
  EXPECT_EQ(spans(), 400u);
  EXPECT_THAT(content(path), AllOf(HasSubstr("\"name\":\"layer 1 mlp\""),
                                   HasSubstr("\"name\":\"recompute layer 1 mlp\"")));
}

}  // namespace
