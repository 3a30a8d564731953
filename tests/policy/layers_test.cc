#include "recoup/policy/layers.h"

#include <gtest/gtest.h>

namespace recoup {
namespace {

std::vector<std::int64_t> members(const std::string& expression, std::int64_t total) {
  const auto set = LayerSet::parse(expression);
  EXPECT_TRUE(set.ok()) << (set.ok() ? "" : set.error().text);
  std::vector<std::int64_t> in;
  for (std::int64_t n = 1; set.ok() && n <= total; ++n) {
    if (set.value().contains(n, total)) in.push_back(n);
  }
  return in;
}

using Numbers = std::vector<std::int64_t>;

TEST(LayerSet, FirstN) {
  for (std::int64_t n = 1; n <= 24; ++n) {
    EXPECT_EQ(LayerSet::first(12).contains(n, 24), n <= 12) << n;
    EXPECT_FALSE(LayerSet::first(0).contains(n, 24));
    EXPECT_TRUE(LayerSet::first(100).contains(n, 24));
    EXPECT_TRUE(LayerSet::all().contains(n, 0));
  }
}

TEST(LayerSet, Expressions) {
  EXPECT_EQ(members("3", 6), (Numbers{3}));
  EXPECT_EQ(members("2-4", 6), (Numbers{2, 3, 4}));
  EXPECT_EQ(members("4-", 6), (Numbers{4, 5, 6}));
  EXPECT_EQ(members("1-7:2", 8), (Numbers{1, 3, 5, 7}));
  EXPECT_EQ(members("2-:3", 8), (Numbers{2, 5, 8}));
  EXPECT_EQ(members("2/3", 8), (Numbers{1, 2, 4, 5, 7, 8}));
  EXPECT_EQ(members("1/1", 3), (Numbers{1, 2, 3}));
  EXPECT_EQ(members("-1", 4), (Numbers{1, 2, 3}));
  EXPECT_EQ(members("-3", 4), (Numbers{1}));
  EXPECT_EQ(members("last", 4), (Numbers{4}));
  EXPECT_EQ(members("last-2", 4), (Numbers{2}));
  EXPECT_EQ(members("last-2-last", 4), (Numbers{2, 3, 4}));
  EXPECT_EQ(members("2-last-1", 4), (Numbers{2, 3}));
  EXPECT_EQ(members("1-2, 5", 6), (Numbers{1, 2, 5}));
  EXPECT_EQ(members("all, !2", 4), (Numbers{1, 3, 4}));
  EXPECT_EQ(members("!2,!last", 4), (Numbers{1, 3}));
  EXPECT_EQ(members("1-4,!2,2", 4), (Numbers{1, 2, 3, 4}));  // from left to right
}

TEST(LayerSet, OnlyExpressionsOfTheLastLayersNeedTheTotal) {
  EXPECT_TRUE(LayerSet::parse("-1").value().needs_total());
  EXPECT_TRUE(LayerSet::parse("2-last").value().needs_total());
  EXPECT_FALSE(LayerSet::parse("4-").value().needs_total());
  EXPECT_FALSE(LayerSet::parse("2/3").value().needs_total());
}

TEST(LayerSet, BadExpressionsAreQuoted) {
  for (const char* bad : {"",       ",",
                          "0",      "x",
                          "3-2",    "-0",
                          "-",      "--1",
                          "1:0",    "3/2",
                          "0/3",    "1/",
                          "1-2-3",  "last-1-last-2",
                          "!",      "01",
                          "1.5",    "+1",
                          "1-4:-2", "99999999999999999999"}) {
    const auto set = LayerSet::parse(bad);
    ASSERT_FALSE(set.ok()) << bad;
    EXPECT_NE(set.error().text.find("is no layer expression; allowed are"), std::string::npos);
  }
}

TEST(LayerSet, ListedLayersAreAnExpressionAgain) {
  EXPECT_EQ(layer_expression({}), "none");
  EXPECT_EQ(layer_expression({3}), "3");
  EXPECT_EQ(layer_expression({1, 2, 3, 7, 9, 10}), "1-3,7,9-10");
  EXPECT_EQ(layer_expression({1, 3, 5, 7, 8}), "1-7:2,8");
  EXPECT_EQ(layer_expression({1, 4, 8}), "1,4,8");
  EXPECT_EQ(LayerSet::first(1).text(), "1");
  EXPECT_EQ(LayerSet::first(12).text(), "1-12");
  EXPECT_EQ(LayerSet::first(0).text(), "none");
  EXPECT_EQ(LayerSet::parse("!7, last-2").value().text(), "!7,last-2");
}

TEST(LayerSet, AsManyTermsAsThereMayBe) {
  std::string terms = "1";
  while (terms.size() + 2 <= 2 * LayerSet::kMostTerms) terms += ",1";
  EXPECT_TRUE(LayerSet::parse(terms).ok());
  EXPECT_NE(LayerSet::parse(terms + ",1").error().text.find("has more than 4096 terms"),
            std::string::npos);
}

TEST(LayerSet, DistancesBeyondWhatANumberHolds) {
  const auto far = LayerSet::parse("last-9223372036854775807-").value();
  EXPECT_TRUE(far.contains(9223372036854775807, 24));
  EXPECT_TRUE(far.contains(1, 24));
  EXPECT_TRUE(LayerSet::parse("9223372036854775807-:9223372036854775807")
                  .value()
                  .contains(9223372036854775807, 0));
}

TEST(LayerSet, LargestNamed) {
  EXPECT_EQ(LayerSet::parse("1-12,7").value().largest_named(), 12);
  EXPECT_EQ(LayerSet::parse("3-,2/3").value().largest_named(), 3);
  EXPECT_EQ(LayerSet::first(30).largest_named(), 30);
}

}  // namespace
}  // namespace recoup
