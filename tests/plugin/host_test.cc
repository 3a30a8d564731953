// The policy plugin as a host without LibTorch uses it, and every way of failing to load one.
#include "recoup/host.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
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
    ::unsetenv("RECOUP_PROFILE");
    ::unsetenv("RECOUP_TRACE");
    ::unsetenv("RECOUP_CHECK");
    ::unsetenv("RECOUP_MEMORY_BUDGET");
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
  EXPECT_THAT(error(BAD_PLUGIN "_6.so"), HasSubstr("recoup_plugin_v1 is data, not a function"));
  EXPECT_THAT(error(""), HasSubstr("no plugin was named"));
}

// glibc's dlopen() dies of such files.
TEST_F(PolicyPlugin, ATruncatedLibraryIsASentence) {
  std::ifstream whole(RECOUP_POLICY_PLUGIN, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(whole)), {});
  ASSERT_GT(bytes.size(), 10000u);
  const auto path = testing::TempDir() + "truncated.so";
  for (const auto size :
       {std::size_t{0}, std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{200},
        std::size_t{4096}, bytes.size() / 2, bytes.size() - 1}) {
    std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), size);
    EXPECT_THAT(error(path), AllOf(HasSubstr("cannot load the plugin " + path),
                                   testing::AnyOf(HasSubstr("truncated"), HasSubstr("too short"))))
        << size;
  }
  std::ofstream(path) << std::string(10000, 'x');
  EXPECT_THAT(error(path), HasSubstr("it is no 64-bit shared library"));
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), bytes.size());
  EXPECT_EQ(error(path), "loaded");
}

TEST_F(PolicyPlugin, WhatTheHostDoesNotOfferIsRefused) {
  const std::string selective = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";
  const std::vector<std::pair<std::string, std::uint64_t>> options = {
      {"recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 2\n",
       RECOUP_CAN_FULL},
      {selective + "distribute_saved_activations: true\n", RECOUP_CAN_DISTRIBUTE},
      {selective + "recompute_layer_scope: stage\nrecompute_mlp_num_layers: 2\n",
       RECOUP_CAN_STAGES}};
  const std::vector<std::string> bits = {"RECOUP_CAN_FULL", "RECOUP_CAN_DISTRIBUTE",
                                         "RECOUP_CAN_STAGES"};
  for (std::size_t i = 0; i < options.size(); ++i) {
    options_.config_path.clear();
    options_.config_yaml = options[i].first;
    options_.stage_num_layers = 24;
    options_.capabilities = 0;
    EXPECT_THAT(error(RECOUP_POLICY_PLUGIN), AllOf(HasSubstr("options:"), HasSubstr(bits[i])));
    options_.capabilities = options[i].second;
    EXPECT_EQ(error(RECOUP_POLICY_PLUGIN), "loaded") << bits[i];
  }
  EXPECT_THAT(warnings_, IsEmpty());
  options_.config_yaml = selective;
  options_.modules = 0;
  EXPECT_THAT(error(RECOUP_POLICY_PLUGIN), HasSubstr("recoup_host_v1.modules"));
}

TEST_F(PolicyPlugin, NoNumberOfMlpsIsAnUnknownOne) {
  options_.capabilities = RECOUP_CAN_COUNT_MLPS;
  options_.config_yaml =
      "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_layer_scope: mlp\n"
      "recompute_mlp_num_layers: 2\n";
  EXPECT_EQ(error(RECOUP_POLICY_PLUGIN), "loaded");
  EXPECT_THAT(warnings_, IsEmpty());
  options_.config_yaml += "recompute_mlp_layers: '!last'\n";
  const auto at = options_.config_yaml.find("recompute_mlp_num_layers");
  options_.config_yaml.erase(at, options_.config_yaml.find('\n', at) + 1 - at);
  EXPECT_THAT(error(RECOUP_POLICY_PLUGIN), HasSubstr("does not say how many MLPs there are"));
  options_.num_mlps = 3;
  EXPECT_EQ(error(RECOUP_POLICY_PLUGIN), "loaded");
}

TEST_F(PolicyPlugin, ALayerGivenTwiceIsSaidOnce) {
  const auto recoup = host(kMlp);
  recoup.layer({1});
  recoup.layer({2});
  EXPECT_THAT(warnings_, IsEmpty());
  for (int i = 0; i < 3; ++i) recoup.layer({2});
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("layer number 2 was given twice")));
}

TEST_F(PolicyPlugin, SaysWhatConfiguresItFromOutside) {
  EXPECT_EQ(recoup::Host::configured(RECOUP_POLICY_PLUGIN), "");
  ::setenv("RECOUP_CONFIG", "x.yaml", 1);
  ::setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "", 1);
  EXPECT_EQ(recoup::Host::configured(RECOUP_POLICY_PLUGIN), "environment variable RECOUP_CONFIG");
  ::setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "many", 1);  // wrong, but set
  EXPECT_EQ(recoup::Host::configured(RECOUP_POLICY_PLUGIN),
            "environment variable RECOUP_CONFIG, "
            "environment variable RECOUP_RECOMPUTE_MLP_NUM_LAYERS");
}

TEST_F(PolicyPlugin, ProfileAndTraceHaveNoEffectHereAndThatIsSaid) {
  ::setenv("RECOUP_PROFILE", "/no/such/profile.json", 1);
  ::setenv("RECOUP_TRACE", "/no/such/trace.json", 1);
  ::setenv("RECOUP_CHECK", "values", 1);
  EXPECT_EQ(recoup::Host::configured(RECOUP_POLICY_PLUGIN),
            "environment variable RECOUP_PROFILE, environment variable RECOUP_TRACE");
  EXPECT_TRUE(host(kMlp).layer({1}).recompute_mlp());
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("RECOUP_PROFILE has no effect"),
                                     HasSubstr("RECOUP_TRACE has no effect"),
                                     HasSubstr("RECOUP_CHECK has no effect")));
}

TEST_F(PolicyPlugin, ACheckThatIsNoneIsRefused) {
  ::setenv("RECOUP_CHECK", "yes", 1);
  try {
    host(kMlp);
    ADD_FAILURE();
  } catch (const recoup::LoadError& e) {
    EXPECT_STREQ(e.what(), "RECOUP_CHECK=yes: is no check; allowed are values and copy");
  }
}

TEST_F(PolicyPlugin, ABudgetThatCannotBeKeptIsRefused) {
  const std::string selective = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";
  const auto refusal = [this](const std::string& yaml) {
    options_.config_path = file(yaml);
    return error(RECOUP_POLICY_PLUGIN);
  };
  const auto with_budget = [&] { return refusal(selective + "recompute_memory_budget: 1GiB\n"); };
  EXPECT_THAT(with_budget(), HasSubstr("host_test.yaml:3:1: recompute_memory_budget: this host "
                                       "cannot keep a memory budget"));
  options_.capabilities = RECOUP_CAN_BUDGET;
  EXPECT_THAT(with_budget(), HasSubstr("recompute_memory_budget: librecoup_policy.so has no "
                                       "engine to measure a step with"));
  const auto variable = [&](const char* value, const std::string& yaml) {
    ::setenv("RECOUP_MEMORY_BUDGET", value, 1);
    return refusal(yaml);
  };
  const std::string name = "environment variable RECOUP_MEMORY_BUDGET: ";
  EXPECT_EQ(variable("74GiX", selective).rfind(name + "\"GiX\" is no unit", 0), 0u);
  EXPECT_THAT(variable("1GiB",
                       "recompute_granularity: full\nrecompute_method: uniform\n"
                       "recompute_num_layers: 1\n"),
              HasSubstr(name + "conflicts with "));
  EXPECT_THAT(variable("1GiB", selective + "mlp_recompute_level: full\n"),
              HasSubstr("host_test.yaml:3:1: mlp_recompute_level, since levels are the budget's"));
  EXPECT_THAT(variable("1GiB", ""), HasSubstr(name + "nothing may be recomputed"));
  EXPECT_THAT(variable("1GiB", selective), HasSubstr(name + "recompute_memory_budget: libre"));
}

TEST_F(PolicyPlugin, WithoutABudgetAStepsEndDoesNothing) {
  options_.capabilities = RECOUP_CAN_BUDGET;
  options_.memory = [](bool) -> recoup::HostOptions::Memory { throw std::logic_error("called"); };
  auto recoup = host(kMlp);
  recoup.microbatch(0);
  recoup.step_end();
  recoup.step_end(RECOUP_STEP_FAILED | RECOUP_STEP_SKIPPED);
  recoup::Host().step_end();
}

TEST_F(PolicyPlugin, TheFirstLineNamesVersionHostAndFile) {
  const auto recoup = host(kMlp);
  EXPECT_FALSE(recoup.version().empty());
  EXPECT_EQ(lines_.at(0),
            "recoup " + recoup.version() + ": options of host_test from " + options_.config_path);
}

TEST_F(PolicyPlugin, AfterCloseALayerSaysSo) {
  auto recoup = host(kMlp);
  const auto layer = recoup.layer({1});
  EXPECT_TRUE(layer.recompute_mlp());
  recoup.close();
  recoup.close();  // nothing left to do
  try {
    layer.recompute_mlp();
    ADD_FAILURE();
  } catch (const std::runtime_error& e) {
    EXPECT_STREQ(e.what(),
                 "recoup: layer 1: its Host was closed; close it once no layer is used any more");
  }
  EXPECT_THROW(recoup.layer({2}), std::invalid_argument);
}

// No exception of the host's crosses the library, which may have a C++ runtime of its own inside.
TEST_F(PolicyPlugin, ALogThatThrowsIsAnError) {
  int calls = 0, throws_at = 0;
  bool standard = true;
  options_.log = [&](recoup_log_level, const std::string&) {
    if (++calls != throws_at) return;
    if (standard) throw std::runtime_error("boom");
    throw 7;
  };
  options_.config_path = file(kMlp);
  throws_at = 1;
  EXPECT_EQ(error(RECOUP_POLICY_PLUGIN), "recoup: boom");
  standard = false;
  throws_at = calls + 1;
  EXPECT_EQ(error(RECOUP_POLICY_PLUGIN), "recoup: unknown error");
  const recoup::Host recoup(RECOUP_POLICY_PLUGIN, options_);
  throws_at = calls + 1;
  EXPECT_THROW(recoup.layer({1}), std::invalid_argument);
  EXPECT_TRUE(recoup.layer({2}).recompute_mlp());
}

// A table of functions as an older library has it, and a longer one as a newer.
TEST_F(PolicyPlugin, ShorterAndLongerTablesAreSpokenTo) {
  void* library = dlopen(RECOUP_POLICY_PLUGIN, RTLD_NOW);
  ASSERT_NE(library, nullptr);
  const auto* api = reinterpret_cast<recoup_entry>(dlsym(library, RECOUP_ENTRY_SYMBOL))(1);
  struct {
    recoup_plugin_v1 table;
    unsigned char more[64];
  } table;
  options_.config_path = file(kMlp);
  for (const auto size :
       {RECOUP_PLUGIN_V1_MIN, RECOUP_PLUGIN_V1_MIN + 8, sizeof(table.table), sizeof(table)}) {
    std::memset(&table, 0xab, sizeof(table));  // what is beyond the size must not be called
    std::memcpy(&table, api, std::min(size, sizeof(*api)));
    table.table.struct_size = size;
    recoup::Host recoup(&table.table, options_);
    EXPECT_TRUE(recoup.layer({1}).recomputes(RECOUP_CORE_ATTN)) << size;
    if (size >= sizeof(table.table)) recoup.close();
  }
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
  EXPECT_STREQ(api->module(0)->name, "core_attn");
  EXPECT_EQ(api->module(1)->bit, static_cast<std::uint32_t>(RECOUP_MLP));
  std::size_t modules = 0;
#define RECOUP_COUNTED(...) ++modules;
  RECOUP_MODULES(RECOUP_COUNTED)
#undef RECOUP_COUNTED
  EXPECT_NE(api->module(modules - 1), nullptr);
  EXPECT_EQ(api->module(modules), nullptr);
  EXPECT_EQ(api->module(static_cast<std::size_t>(-1)), nullptr);
  EXPECT_EQ(api->abi_minor, RECOUP_ABI_MINOR);

  // Asking without giving: no handle, no line, no second layer.
  layer.struct_size = sizeof(layer);
  layer.flags = RECOUP_LAYER_QUERY;
  EXPECT_EQ(hook(plugin, &layer, error, sizeof(error)), RECOUP_OK);
  EXPECT_EQ(layer.handle, nullptr);
  EXPECT_EQ(api->decide(plugin, &layer, error, sizeof(error)), RECOUP_INVALID_ARGUMENT);
  layer.flags = 0;
  EXPECT_EQ(hook(plugin, &layer, error, sizeof(error)), RECOUP_OK);
  EXPECT_NE(layer.handle, nullptr);
  EXPECT_EQ(api->decide(plugin, &layer, error, sizeof(error)), RECOUP_OK);
  EXPECT_EQ(api->decide(plugin, nullptr, error, sizeof(error)), RECOUP_INVALID_ARGUMENT);
  layer.struct_size = RECOUP_LAYER_V1_MIN;  // has no handle
  EXPECT_EQ(api->decide(plugin, &layer, error, sizeof(error)), RECOUP_INVALID_ARGUMENT);
  layer.struct_size = sizeof(layer);

  api->finalize(plugin);
  api->finalize(nullptr);
  // What was finalized, what another library's init gave, and garbage.
  char why[256] = "";
  void* garbage[] = {&layer, reinterpret_cast<void*>(1), reinterpret_cast<void*>(-1),
                     reinterpret_cast<void*>(0xdeadbeefull)};
  EXPECT_EQ(api->close(plugin, why, sizeof(why)), RECOUP_INVALID_ARGUMENT);
  EXPECT_STREQ(why, "recoup: close: this plugin was closed already");
  EXPECT_EQ(hook(plugin, &layer, why, sizeof(why)), RECOUP_INVALID_ARGUMENT);
  EXPECT_EQ(api->decide(plugin, &layer, why, sizeof(why)), RECOUP_INVALID_ARGUMENT);
  for (void* wrong : garbage) {
    EXPECT_EQ(api->close(wrong, why, sizeof(why)), RECOUP_INVALID_ARGUMENT);
    EXPECT_THAT(why, HasSubstr("no plugin of this library"));
    EXPECT_EQ(hook(wrong, &layer, why, sizeof(why)), RECOUP_INVALID_ARGUMENT);
  }
  testing::internal::CaptureStderr();
  api->finalize(plugin);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("was closed already"));
  EXPECT_EQ(api->close(nullptr, why, sizeof(why)), RECOUP_OK);
}

}  // namespace
