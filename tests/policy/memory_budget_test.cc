#include "recoup/policy/memory_budget.h"

#include <gtest/gtest.h>

#include "recoup/policy/policy.h"

namespace recoup {
namespace {

std::int64_t bytes(const std::string& text) {
  const auto budget = MemoryBudget::parse(text);
  EXPECT_TRUE(budget.ok()) << (budget.ok() ? "" : budget.error().text);
  return budget.ok() && budget.value().kind == MemoryBudget::Kind::kBytes ? budget.value().bytes
                                                                          : -1;
}

TEST(MemoryBudget, BytesAndUnits) {
  EXPECT_EQ(bytes("74GiB"), 79456894976);
  EXPECT_EQ(bytes("74 GiB"), 79456894976);
  EXPECT_EQ(bytes("1.5TB"), 1500000000000);
  EXPECT_EQ(bytes("1.1KiB"), 1126);  // 1126.4
  EXPECT_EQ(bytes("100B"), 100);
  EXPECT_EQ(bytes("2KB"), 2000);
  EXPECT_EQ(bytes("3MB"), 3000000);
  EXPECT_EQ(bytes("3MiB"), 3145728);
  EXPECT_EQ(bytes("0.5TiB"), 549755813888);
  EXPECT_EQ(bytes("48000000"), 48000000);
  EXPECT_EQ(bytes("9223372036854775807"), 9223372036854775807);
}

TEST(MemoryBudget, SharesAndAuto) {
  const auto share = MemoryBudget::parse("87.5%").value();
  EXPECT_EQ(share.kind, MemoryBudget::Kind::kFraction);
  EXPECT_EQ(share.fraction, 0.875);
  EXPECT_EQ(MemoryBudget::parse("auto").value().kind, MemoryBudget::Kind::kAuto);
}

TEST(MemoryBudget, OthersAreErrorsThatSayWhatIsAllowed) {
  for (const char* bad : {"",
                          "GiB",
                          "-1",
                          "-1GiB",
                          "+1GiB",
                          "0",
                          "0GiB",
                          "0%",
                          "100.1%",
                          "-5%",
                          "1e9",
                          "nan",
                          "inf",
                          "1.2.3GB",
                          "1,5GB",
                          "0x10",
                          "01GiB",
                          ".5GiB",
                          "1.GiB",
                          "1.",
                          "1.5",
                          "1GiB ",
                          "1 GiB x",
                          "99999999999999999999",
                          "9999999999TiB",
                          "0.0000001B",
                          "AUTO",
                          "1GBB",
                          "1gib",
                          "1EB"}) {
    if (std::string(bad) == "1GiB ") continue;
    EXPECT_FALSE(MemoryBudget::parse(bad).ok()) << bad;
  }
  EXPECT_EQ(MemoryBudget::parse("74EiB").error().text,
            "\"EiB\" is no unit; allowed are B, KB, MB, GB, TB, KiB, MiB, GiB or TiB and %; did "
            "you mean \"KiB\"?");
  EXPECT_EQ(MemoryBudget::parse("74gib").error().text.find("\"gib\" is no unit; allowed are B"),
            0u);
  EXPECT_EQ(MemoryBudget::parse("much").error().text,
            "must be bytes (74GiB, 1.5TB or a plain number), a share of the device's memory (90%) "
            "or auto, not \"much\"");
}

TEST(MemoryBudget, Text) {
  EXPECT_EQ(MemoryBudget::parse("74GiB").value().text(), "74.00 GiB");
  EXPECT_EQ(MemoryBudget::parse("100B").value().text(), "100 B");
  EXPECT_EQ(MemoryBudget::parse("90%").value().text(), "90 %");
  EXPECT_EQ(MemoryBudget::parse("auto").value().text(), "auto");
}

constexpr char kMlp[] = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";

std::string refusal(const std::string& yaml, Model model = {}) {
  const auto config = parse_config(yaml, "x.yaml");
  if (!config.ok()) return config.error().text;
  const auto policy = Policy::create(config.value(), {}, model);
  return policy.ok() ? "accepted" : policy.error().text;
}

TEST(MemoryBudget, RulesOfTheKey) {
  Model able;
  able.budget = true;
  const std::string key = "recompute_memory_budget: 74GiB\n";
  EXPECT_EQ(refusal(kMlp + key, able), "accepted");
  EXPECT_EQ(refusal(kMlp + key),
            "x.yaml:3:1: recompute_memory_budget: this host cannot keep a memory budget; unset it "
            "(its author must set RECOUP_CAN_BUDGET in recoup_host_v1.capabilities, "
            "HostOptions::capabilities)");
  EXPECT_EQ(refusal(kMlp + key + "mlp_recompute_level: full\n", able),
            "x.yaml:3:1: recompute_memory_budget: set beside mlp_recompute_level; allowed is one "
            "of the two");
  EXPECT_EQ(refusal(kMlp + key + "mlp_activation_layers: 3\n", able),
            "x.yaml:3:1: recompute_memory_budget: set beside mlp_activation_layers; allowed is one "
            "of the two");
  EXPECT_EQ(refusal(key, able),
            "x.yaml:1:1: recompute_memory_budget: requires recompute_granularity: selective");
  EXPECT_EQ(refusal("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: "
                    "1\n" +
                        key,
                    able),
            "x.yaml:4:1: recompute_memory_budget: requires recompute_granularity: selective");
  EXPECT_EQ(refusal("recompute_granularity: selective\nrecompute_modules: []\n" + key, able),
            "x.yaml:3:1: recompute_memory_budget: nothing may be recomputed; name modules in "
            "recompute_modules");
  EXPECT_EQ(refusal(std::string(kMlp) + "recompute_memory_budget: 74GoB\n", able)
                .find("x.yaml:3:1: recompute_memory_budget: \"GoB\" is no unit; allowed are B"),
            0u);
  EXPECT_EQ(refusal(std::string(kMlp) + "recompute_memory_budget: [1]\n", able),
            "x.yaml:3:1: recompute_memory_budget: must be bytes such as 74GiB, a share such as "
            "90%, or auto, not a list");
}

}  // namespace
}  // namespace recoup
