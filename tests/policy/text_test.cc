#include "text.h"

#include <gtest/gtest.h>

namespace recoup::text {
namespace {

TEST(Text, PrintableShowsWhatATerminalMayTake) {
  EXPECT_EQ(printable("plain \xC3\xA9 \xE5\xB1\x82 \xF0\x9F\x98\x80"),
            "plain \xC3\xA9 \xE5\xB1\x82 \xF0\x9F\x98\x80");
  EXPECT_EQ(printable(std::string_view("\0\x1b\x7f\t\r\n", 6)), "\\x00\\x1b\\x7f\\x09\\x0d\\n");
  EXPECT_EQ(printable("\xC2\x9B"), "\\u{9b}");        // a control character beyond ASCII
  EXPECT_EQ(printable("\xE2\x80\xAE"), "\\u{202e}");  // turns the direction of what follows
  EXPECT_EQ(printable("\xC3(\xFF\xED\xA0\x80"), "\\xc3(\\xff\\xed\\xa0\\x80");  // no UTF-8
  EXPECT_EQ(printable("\xC0\xAF\xE0\x80\xAF\xF5\x80\x80\x80\xE2\x82"),
            "\\xc0\\xaf\\xe0\\x80\\xaf\\xf5\\x80\\x80\\x80\\xe2\\x82");
}

TEST(Text, PrintableCutsAtCharactersNotBytes) {
  std::string accents;
  for (int i = 0; i < 81; ++i) accents += "\xC3\xA9";
  EXPECT_EQ(printable(accents), accents.substr(0, 160) + "...");
  EXPECT_EQ(printable(std::string_view(accents).substr(2)), accents.substr(2));
  EXPECT_EQ(printable("abc", 2), "ab...");
}

TEST(Text, ToUtf8FollowsTheByteOrderMark) {
  EXPECT_EQ(to_utf8("abc"), "abc");
  EXPECT_EQ(to_utf8("\xEF\xBB\xBF"
                    "abc"),
            "abc");
  EXPECT_EQ(to_utf8(std::string_view("\xFF\xFE\xE9\0=\xD8\0\xDE", 8)), "\xC3\xA9\xF0\x9F\x98\x80");
  EXPECT_EQ(to_utf8(std::string_view("\xFE\xFF\xD8=\xDE\0", 6)), "\xF0\x9F\x98\x80");
  EXPECT_EQ(to_utf8(std::string_view("\0\0\xFE\xFF\0\1\xF6\0", 8)), "\xF0\x9F\x98\x80");
  // Halves of pairs and of units.
  EXPECT_EQ(to_utf8(std::string_view("\xFE\xFF\xD8=\0a\xDE\0\0", 9)),
            "\xEF\xBF\xBD"
            "a"
            "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Text, HintsAreForSlipsOnly) {
  const std::vector<std::string> allowed = {"selective", "full"};
  EXPECT_EQ(did_you_mean("selectiv", allowed), "; did you mean \"selective\"?");
  EXPECT_EQ(did_you_mean("selcetive", allowed), "; did you mean \"selective\"?");
  EXPECT_EQ(did_you_mean("none", allowed), "");
  EXPECT_EQ(did_you_mean(std::string(10'000'000, 'a'), allowed), "");
  EXPECT_EQ(did_you_mean("", allowed), "");
}

}  // namespace
}  // namespace recoup::text
