// The LibTorch plugin, loaded as a trainer loads it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>

#include "../../examples/activation_meter.h"
#include "recoup/host.hpp"

namespace {

using testing::HasSubstr;

class TorchPlugin : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "1", 1);
    options_.name = "torch_plugin_test";
    options_.torch_version = TORCH_VERSION;
    options_.log = [](recoup_log_level, const std::string&) {};
  }
  void TearDown() override { ::unsetenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS"); }

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

TEST_F(TorchPlugin, ARegionIsReleasedOnceWhateverHappens) {
  void* library = dlopen(RECOUP_PLUGIN, RTLD_NOW);
  const auto* api = reinterpret_cast<recoup_entry>(dlsym(library, RECOUP_ENTRY_SYMBOL))(1);
  int released = 0;
  recoup_region_v1 region{};
  region.struct_size = offsetof(recoup_region_v1, keep);  // a host of before keep and restore
  region.name = "r";
  region.user = &released;
  region.forward = [](void*, const void*, void*, void*) -> std::int32_t { return 1; };
  region.release = [](void* user) { ++*static_cast<int*>(user); };
  std::vector<at::Tensor> in{at::ones({1})}, out;
  std::exception_ptr exception;
  char error[256] = "";
  EXPECT_EQ(api->checkpoint(nullptr, &region, &in, &out, &exception, error, sizeof(error)),
            RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(released, 1);
  EXPECT_THAT(error, HasSubstr("the plugin is null"));
  recoup_host_v1 host{};
  host.struct_size = sizeof(host);
  host.torch_version = TORCH_VERSION;
  host.modules = RECOUP_MLP;
  host.log = [](void*, recoup_log_level, const char*) {};
  host.register_layer_hook = [](void*, recoup_layer_hook, void*) { return RECOUP_OK; };
  void* plugin = nullptr;
  ASSERT_EQ(api->init(&plugin, &host, error, sizeof(error)), RECOUP_OK) << error;
  EXPECT_EQ(api->checkpoint(plugin, &region, &in, &out, &exception, error, sizeof(error)),
            RECOUP_CALLBACK_FAILED);
  EXPECT_EQ(released, 2);
  EXPECT_TRUE(exception != nullptr);
  EXPECT_EQ(api->checkpoint(plugin, nullptr, &in, &out, &exception, error, sizeof(error)),
            RECOUP_INVALID_ARGUMENT);
  api->finalize(plugin);
}

}  // namespace
