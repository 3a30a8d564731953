// The policy plugin as a host without LibTorch uses it, and every way of failing to load one.
#include "recoup/host.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kMlp[] = "recompute_granularity: selective\nrecompute_modules: [core_attn, mlp]\n";

class PolicyPlugin : public testing::Test {
 protected:
  void SetUp() override {
    ::unsetenv("RECOUP_CONFIG");
    ::unsetenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS");
    options_.name = "host_test";
    options_.num_layers = 24;
    options_.modules = RECOUP_MLP | RECOUP_CORE_ATTN;
    options_.log = [this](recoup_log_level level, const std::string& line) {
      (level == RECOUP_LOG_WARNING ? warnings_ : lines_).push_back(line);
    };
  }
  void TearDown() override { SetUp(); }

  std::string file(const std::string& yaml) {
    const auto path = testing::TempDir() + "host_test.yaml";
    std::ofstream(path) << yaml;
    return path;
  }
  recoup::Host host(const std::string& yaml) {
    options_.config_path = file(yaml);
    return recoup::Host(RECOUP_POLICY_PLUGIN, options_);
  }
  std::string error(const std::string& library) {
    try {
      recoup::Host host(library, options_);
    } catch (const recoup::LoadError& e) {
      return e.what();
    }
    return "loaded";
  }

  recoup::HostOptions options_;
  std::vector<std::string> lines_, warnings_;
};

TEST_F(PolicyPlugin, DecidesForEachLayerAndLogsIt) {
  const auto recoup = host(std::string(kMlp) + "recompute_mlp_num_layers: 12\n");
  EXPECT_EQ(lines_.back(),
            "recoup: 12 of 24 MLPs recomputed (layers 1-12, level full), core_attn everywhere");
  lines_.clear();
  for (std::int64_t n = 1; n <= 24; ++n) {
    const auto layer = recoup.layer({n});
    EXPECT_EQ(layer.recompute_mlp(), n <= 12) << n;
    EXPECT_TRUE(layer.recomputes(RECOUP_CORE_ATTN)) << n;
    EXPECT_EQ(layer.full_group(), 0);
    EXPECT_EQ(lines_.back(), "Layer " + std::to_string(n) + ": recompute_mlp=" +
                                 (n <= 12 ? "True, level full" : "False") + ", also core_attn");
  }
  EXPECT_EQ(lines_.size(), 24u);
  EXPECT_FALSE(recoup.layer({25, /*is_moe=*/true}).recompute_mlp());
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(PolicyPlugin, SaysAfterTheLastLayerWhatOnlyTheLayersShow) {
  options_.num_layers = 2;
  const auto recoup = host(kMlp);
  recoup.layer({1, /*is_moe=*/true});
  EXPECT_THAT(warnings_, IsEmpty());
  recoup.layer({2, /*is_moe=*/true});
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("recompute_modules: \"mlp\": none of the 2 layers "
                                               "constructed here has it: all are MoE layers")));
  EXPECT_EQ(lines_.back(),
            "recoup: 2 layers constructed: 0 of 0 MLPs recomputed, core_attn everywhere");
}

TEST_F(PolicyPlugin, MlpScopeNeedsLayersThatSayWhichMlpTheyHave) {
  const auto recoup =
      host(std::string(kMlp) + "recompute_mlp_num_layers: 1\nrecompute_layer_scope: mlp\n");
  try {
    recoup.layer({3});
    ADD_FAILURE() << "decided";
  } catch (const std::exception& e) {
    EXPECT_THAT(e.what(), HasSubstr("layer 3 does not say which of the model's MLPs it has"));
  }
}

TEST_F(PolicyPlugin, OnlyRankZeroLogs) {
  options_.rank = 1;
  host(kMlp).layer({1});
  EXPECT_THAT(lines_, IsEmpty());
}

TEST_F(PolicyPlugin, WithoutAConfigurationNothingIsRecomputed) {
  const recoup::Host recoup(RECOUP_POLICY_PLUGIN, options_);
  EXPECT_FALSE(recoup.layer({1}).recompute_mlp());
  EXPECT_FALSE(recoup::Host().layer({1}).recompute_mlp());
}

TEST_F(PolicyPlugin, TheConstantModeWinsAndSaysSo) {
  ::setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "2", 1);
  const auto recoup = host(std::string(kMlp) + "recompute_mlp_num_layers: 12\n");
  EXPECT_TRUE(recoup.layer({2}).recompute_mlp());
  EXPECT_FALSE(recoup.layer({3}).recompute_mlp());
  EXPECT_THAT(
      warnings_,
      ElementsAre(AllOf(HasSubstr("environment variable RECOUP_RECOMPUTE_MLP_NUM_LAYERS=2 decides"),
                        HasSubstr("OVERRIDES"), HasSubstr("host_test.yaml:3:1"))));
  options_.config_path.clear();
  EXPECT_TRUE(recoup::Host(RECOUP_POLICY_PLUGIN, options_).layer({2}).recompute_mlp());
}

TEST_F(PolicyPlugin, TheConfigurationMayComeFromTheEnvironment) {
  ::setenv("RECOUP_CONFIG", file(kMlp).c_str(), 1);
  EXPECT_TRUE(recoup::Host(RECOUP_POLICY_PLUGIN, options_).layer({1}).recompute_mlp());
}

TEST_F(PolicyPlugin, TheConfigurationMayBeTheHostsOwnOptions) {
  options_.config_yaml = std::string(kMlp) + "recompute_mlp_num_layers: 1\n";
  const recoup::Host recoup(RECOUP_POLICY_PLUGIN, options_);
  EXPECT_TRUE(recoup.layer({1}).recompute_mlp());
  EXPECT_FALSE(recoup.layer({2}).recompute_mlp());
  options_.config_yaml = std::string(kMlp) + "recompute_mlp_num_layers: 0\n";
  EXPECT_THAT(error(RECOUP_POLICY_PLUGIN),
              HasSubstr("options:3:1: recompute_mlp_num_layers: must be >= 1"));
  options_.config_path = file(kMlp);
  EXPECT_THAT(error(RECOUP_POLICY_PLUGIN), HasSubstr("allowed is one of the two"));
}

TEST_F(PolicyPlugin, BadConfigurationsNameFileLineAndKey) {
  options_.config_path = file(std::string(kMlp) + "recompute_mlp_num_layers: x\n");
  EXPECT_THAT(error(RECOUP_POLICY_PLUGIN),
              HasSubstr("host_test.yaml:3:1: recompute_mlp_num_layers: must be an integer >= 1"));
  options_.config_path = "/no/such.yaml";
  EXPECT_THAT(error(RECOUP_POLICY_PLUGIN), HasSubstr("/no/such.yaml: cannot be read"));
  options_.config_path.clear();
  ::setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "many", 1);
  EXPECT_THAT(error(RECOUP_POLICY_PLUGIN), HasSubstr("must be an integer >= 0"));
}

TEST_F(PolicyPlugin, BadLayerNumbersAreErrors) {
  const auto recoup = host(kMlp);
  EXPECT_THROW(recoup.layer({0}), std::invalid_argument);
  EXPECT_THROW(recoup.layer({3, false, 3}), std::invalid_argument);
}

TEST_F(PolicyPlugin, HasNoCheckpointEngine) {
  const auto layer = host(kMlp).layer({1});
  EXPECT_THROW(layer.mlp([](int x) { return x; }, 1), recoup::LoadError);
}

TEST_F(PolicyPlugin, LoadErrorsSayWhatToDo) {
  EXPECT_THAT(error("/no/such/plugin.so"),
              AllOf(HasSubstr("cannot load the plugin /no/such/plugin.so"),
                    HasSubstr("No such file"), HasSubstr("give the path of librecoup_policy.so")));
  options_.torch_version = "2.11.0";  // the advice is for the host that asks
  EXPECT_THAT(error("/no/such/plugin.so"), HasSubstr("give the path of librecoup.so, built with"));
  options_.torch_version.reset();
  EXPECT_THAT(error(BAD_PLUGIN "_1.so"), AllOf(HasSubstr("has no symbol recoup_plugin_v1"),
                                               HasSubstr("from the same recoup")));
  EXPECT_THAT(error(BAD_PLUGIN "_2.so"), HasSubstr("does not speak ABI version 1"));
  EXPECT_THAT(error(BAD_PLUGIN "_3.so"), HasSubstr("speaks ABI version 99"));
  EXPECT_THAT(error(BAD_PLUGIN "_4.so"),
              HasSubstr("with a struct of 8 bytes, this host version 1 with at least 64"));
  EXPECT_THAT(error(BAD_PLUGIN "_5.so"), HasSubstr("registered no layer-construction hook"));
}

// The C interface itself, called wrongly.
TEST_F(PolicyPlugin, WrongCallsAreStatusesNotCrashes) {
  void* library = dlopen(RECOUP_POLICY_PLUGIN, RTLD_NOW);
  ASSERT_NE(library, nullptr);
  const auto entry = reinterpret_cast<recoup_entry>(dlsym(library, RECOUP_ENTRY_SYMBOL));
  EXPECT_EQ(entry(RECOUP_ABI_VERSION + 1), nullptr);
  const auto* api = entry(RECOUP_ABI_VERSION);
  ASSERT_NE(api, nullptr);
  EXPECT_EQ(api->torch_version, nullptr);
  EXPECT_EQ(api->checkpoint, nullptr);

  void* plugin = &plugin;
  char error[8];
  recoup_host_v1 host{};
  EXPECT_EQ(api->init(nullptr, &host, error, sizeof(error)), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(api->init(&plugin, nullptr, nullptr, 0), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(plugin, nullptr);
  host.struct_size = sizeof(host);  // but no register_layer_hook
  EXPECT_EQ(api->init(&plugin, &host, error, sizeof(error)), RECOUP_INVALID_ARGUMENT);
  EXPECT_STREQ(error, "recoup:");  // cut to what fits

  static recoup_layer_hook hook;
  host.register_layer_hook = [](void*, recoup_layer_hook h, void*) {
    hook = h;
    return RECOUP_INTERNAL;
  };
  EXPECT_EQ(api->init(&plugin, &host, error, sizeof(error)), RECOUP_INTERNAL);
  EXPECT_EQ(plugin, nullptr);
  host.register_layer_hook = [](void*, recoup_layer_hook h, void*) {
    hook = h;
    return RECOUP_OK;
  };
  host.log = [](void*, recoup_log_level, const char*) {};
  ASSERT_EQ(api->init(&plugin, &host, error, sizeof(error)), RECOUP_OK);
  recoup_layer_v1 layer{};
  EXPECT_EQ(hook(plugin, &layer, error, sizeof(error)), RECOUP_INVALID_ARGUMENT);  // no size
  EXPECT_EQ(hook(plugin, nullptr, error, sizeof(error)), RECOUP_INVALID_ARGUMENT);
  layer.struct_size = sizeof(layer) + 64;  // a newer host
  layer.layer_number = 1;
  EXPECT_EQ(hook(plugin, &layer, error, sizeof(error)), RECOUP_OK);
  api->finalize(plugin);
  api->finalize(nullptr);
}

}  // namespace
