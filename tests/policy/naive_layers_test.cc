// Layer expressions against a second implementation, with any compiler; tests/fuzz does it longer.
#include <gtest/gtest.h>

#include <random>

#include "../fuzz/compare_layers.h"

namespace recoup {
namespace {

TEST(NaiveLayers, AgreeOnRandomExpressions) {
  constexpr const char* kPieces[] = {"1",
                                     "2",
                                     "7",
                                     "12",
                                     "24",
                                     "30",
                                     "0",
                                     "01",
                                     "last",
                                     "all",
                                     "-",
                                     "-",
                                     "-",
                                     "/",
                                     ":",
                                     ",",
                                     ",",
                                     "!",
                                     " ",
                                     "2/3",
                                     "1-24:2",
                                     "-1",
                                     "last-2",
                                     "last-28-:7",
                                     "9223372036854775807",
                                     "9223372036854775808",
                                     "x",
                                     "\n"};
  std::mt19937 random(1);  // NOLINT: the same expressions in every run
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string expression;
    for (auto pieces = 1 + random() % 6; pieces > 0; --pieces) {
      expression += kPieces[random() % std::size(kPieces)];
    }
    const int total = 1 + static_cast<int>(random() % 26);
    ASSERT_EQ(disagreement(expression, total), "") << expression << " of " << total;
    accepted += LayerSet::parse(expression).ok();
  }
  EXPECT_GT(accepted, 2'000);
}

}  // namespace
}  // namespace recoup
