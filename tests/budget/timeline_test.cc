#include "recoup/budget/timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "simulator.h"

namespace recoup::budget::testing {
namespace {

using ::testing::HasSubstr;

const char kSmall[] =
    "recoup timeline 1\n"
    "unit layer 1 part mlp microbatch 0 level 2 may 1 1 fc1 40 1 output 10 extra 0 0 ns 5 50\n"
    "FB 0 100 110\n"
    "FE 0 110 160\n"
    "BB 0 120 130\n"
    "RE 0 160 170\n"
    "BE 0 80 200\n"
    "end -1 90 95\n";

std::string with(const std::string& old, const std::string& replacement) {
  std::string text = kSmall;
  return text.replace(text.find(old), old.size(), replacement);
}

std::string error_of(const std::string& text) {
  const auto parsed = parse(text, "t.txt");
  return parsed.ok() ? "" : parsed.error().text;
}

TEST(Timeline, IsTheSameAfterFormatAndParse) {
  EXPECT_EQ(format(parse(kSmall, "t").value()), kSmall);
  Dice dice(3);
  const Step step(random_step(dice, 4, false, one_f_one_b(4, 2)));
  const auto text = format(step.run(Decisions(step.units(), Level::kActivation)));
  EXPECT_EQ(format(parse(text, "t").value()), text);
}

TEST(Timeline, SaysWhatIsWrongAndWhere) {
  EXPECT_THAT(error_of(""), HasSubstr("t.txt: no event"));
  EXPECT_THAT(error_of("[]"), HasSubstr("t.txt:1: is no timeline"));
  EXPECT_THAT(error_of(with("FB 0 100", "FB 0 lots")),
              HasSubstr("t.txt:3: \"lots\" where an integer"));
  EXPECT_THAT(error_of(with("FB 0 100", "FB 0 -100")), HasSubstr("t.txt:3: \"-100\""));
  EXPECT_THAT(error_of(with("100 110", "99999999999999999999 110")), HasSubstr("t.txt:3:"));
  EXPECT_THAT(error_of(with("100 110", "100")), HasSubstr("t.txt:3: a word is missing"));
  EXPECT_THAT(error_of(with("100 110", "100 110 1")), HasSubstr("after the line's last word"));
  EXPECT_THAT(error_of(with("FB 0", "XX 0")), HasSubstr("\"XX\" where unit, FB"));
  EXPECT_THAT(error_of(with("FB 0", "FB 7")), HasSubstr("unit 7, but there are 1"));
  EXPECT_THAT(error_of(with("FE 0 110 160\n", "")), HasSubstr("missing an event before it"));
  EXPECT_THAT(error_of(with("BE 0 80 200\n", "mark -1 80 200\n")),
              HasSubstr("has 4 of its 5 events"));
  EXPECT_THAT(error_of(with("end -1 90 95\n", "")), HasSubstr("step's end"));
  EXPECT_THAT(error_of(with("FE 0 110 160", "FE 0 110 105")), HasSubstr("a peak below"));
  EXPECT_THAT(error_of(with("level 2", "level 3")), HasSubstr("from 0 to 2"));
}

TEST(Timeline, RefusesUnitsInsideOneAnother) {
  EXPECT_THAT(
      error_of(
          "recoup timeline 1\n"
          "unit layer 1 part mlp microbatch 0 level 2 may 1 1 fc1 0 0 output 0 extra 0 0 ns 5 50\n"
          "unit layer 2 part mlp microbatch 0 level 2 may 1 1 fc1 0 0 output 0 extra 0 0 ns 5 50\n"
          "FB 0 0 0\nFB 1 0 0\nend -1 0 0\n"),
      HasSubstr("inside another unit's forward or rerun"));
}

TEST(Timeline, NamesWhatHoldsAPeak) {
  const auto t = parse(kSmall, "t").value();
  EXPECT_EQ(t.peak(), 200);
  EXPECT_EQ(t.describe(4), "the backward of layer 1 mlp, microbatch 0");
  EXPECT_EQ(t.describe(5), "after the last backward, the optimizer's step");
}

}  // namespace
}  // namespace recoup::budget::testing
