// What YAML lets through, or hides, and a configuration must not.
#include <gtest/gtest.h>

#include "recoup/policy/config.h"

namespace recoup {
namespace {

std::string bad(const std::string& yaml) {
  const auto config = parse_config(yaml, "x.yaml");
  EXPECT_FALSE(config.ok()) << yaml;
  return config.ok() ? "" : config.error().text;
}
bool good(const std::string& yaml) {
  const auto config = parse_config(yaml, "x.yaml");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().text);
  return config.ok();
}
std::vector<std::int64_t> mlp_layers(const std::string& value) {
  const auto config = parse_config(
      "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_layers: " + value,
      "x.yaml");
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().text);
  return config.ok() ? config.value().layers_of(Module::kMlp).members(24)
                     : std::vector<std::int64_t>();
}

// yaml-cpp 0.7 finds a document at each of these commas for ever.
TEST(Yaml, WhatFollowsTheDocumentEndsIt) {
  EXPECT_EQ(bad(",\n"), "x.yaml:1:1: not valid YAML: \",\" after the end of the document");
  EXPECT_EQ(bad("{\"recompute_granularity\": \"selective\"},\n"),
            "x.yaml:1:39: not valid YAML: \",\" after the end of the document");
  EXPECT_EQ(bad("[mlp],\n"), "x.yaml:1:6: not valid YAML: \",\" after the end of the document");
  for (const char* yaml :
       {"\"a\",", "recompute_granularity: selective\n...\n---\n,", ",,,,", "{},{}", "[]]", "{}}",
        "recompute_granularity: !,int\n", "---\n,\n", "{} a: 1", "- a\n,"}) {
    EXPECT_EQ(bad(yaml).find("x.yaml:"), 0u) << yaml;
  }
}

TEST(Yaml, AnEmptyDocumentHidesNoOther) {
  for (const char* first : {"---\n", "null\n", "~\n", "# nothing\n---\n", "---\n...\n"}) {
    EXPECT_NE(bad(std::string(first) + "---\nrecompute_granularity: selective\n")
                  .find(": a second YAML document; allowed is one"),
              std::string::npos)
        << first;
  }
  EXPECT_EQ(bad("recompute_granularity: full\n---\na: 1\n"),
            "x.yaml:2:1: a second YAML document; allowed is one");
  EXPECT_TRUE(good("---\nrecompute_granularity: selective\n...\n"));
  EXPECT_TRUE(good("%YAML 1.2\n---\nrecompute_granularity: selective\n...\n# end\n"));
}

TEST(Yaml, TagsAreNeverDropped) {
  const std::string key =
      "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_layers: ";
  for (const char* value :
       {"! 7",       "!7",      "!last 1-12", "!!str 12", "!foo 12",        "!7,1-12",
        "!x\n  3-9", "! \"7\"", "&a ! 7",     "! &a 7",   "&a # why\n  !7", "!<tag:x> 7",
        "!",         "!!null",  "!!seq [7]",  "! [7]",    "!!null 12",      "!1-24:2",
        "![7]",      "!2/3",    "!7!8",       "!,int"}) {
    const auto text = bad(key + value + "\n");
    EXPECT_EQ(text.find("x.yaml:3:"), 0u) << value << " -> " << text;
    EXPECT_NE(text.find("recompute_mlp_layers: a value beginning with ! must be quoted, such as "
                        "\"!7\""),
              std::string::npos)
        << value << " -> " << text;
  }
  for (const char* yaml :
       {"!!str recompute_granularity: full\n", "!!map {recompute_granularity: selective}\n",
        "recompute_granularity: !!null selective\n", "distribute_saved_activations: !!str true\n",
        "recompute_granularity: selective\nrecompute_modules: [! mlp]\n",
        "recompute_granularity: selective\nrecompute_modules: [!7,mlp]\n", "! x\n"}) {
    EXPECT_NE(bad(yaml).find("a value beginning with ! must be quoted"), std::string::npos)
        << yaml << " -> " << bad(yaml);
  }
  const std::vector<std::int64_t> all_but_7 = mlp_layers("all,!7");
  EXPECT_EQ(all_but_7.size(), 23u);
  for (const char* quoted : {"\"!7\"", "'!7'", "\"! 7\"", "&a '!7'", "|\n  !7\n", ">-\n  !7\n"}) {
    EXPECT_EQ(mlp_layers(quoted), all_but_7) << quoted;
  }
}

TEST(Yaml, ListsOfLayers) {
  EXPECT_EQ(mlp_layers("[1, 2, 5]"), (std::vector<std::int64_t>{1, 2, 5}));
  EXPECT_EQ(mlp_layers("\n- 1\n- 3-4\n- \"last\"\n"), (std::vector<std::int64_t>{1, 3, 4, 24}));
  EXPECT_EQ(mlp_layers("[\"!3-\"]"), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(mlp_layers("[&one 1, *one, 2]"), (std::vector<std::int64_t>{1, 2}));
  const std::string key =
      "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_layers: ";
  EXPECT_EQ(bad(key + "[]"),
            "x.yaml:3:1: recompute_mlp_layers: must be a layer expression or a list of layers, not "
            "an empty list");
  EXPECT_EQ(bad(key + "[1, [2]]"),
            "x.yaml:3:27: recompute_mlp_layers: must be layer numbers and expressions, not a list");
  EXPECT_EQ(bad(key + "[1, null]").find("x.yaml:3:27: recompute_mlp_layers: "), 0u);
  EXPECT_NE(bad(key + "[1, x]").find("\"x\" is no layer expression"), std::string::npos);
  EXPECT_NE(bad(key + "&a [*a]").find("not a list"), std::string::npos);
}

TEST(Yaml, EncodingsAndLineEnds) {
  const std::string text = "recompute_granularity: selective\r\nrecompute_modules: [mlp]\r\n";
  EXPECT_TRUE(good(text));
  EXPECT_TRUE(good("\xEF\xBB\xBF" + text));
  std::string little("\xFF\xFE", 2), big("\xFE\xFF", 2), wide("\xFF\xFE\0\0", 4);
  for (const char c : text) {
    (little += c) += '\0';
    (big += '\0') += c;
    (wide += c).append(3, '\0');
  }
  for (const auto& encoded : {little, big, wide}) {
    EXPECT_TRUE(good(encoded));
    EXPECT_TRUE(parse_config(encoded, "x").value().has(Module::kMlp));
  }
  EXPECT_TRUE(good("# caf\xE9\nrecompute_granularity: selective\n"));  // Latin-1 in a comment
  EXPECT_EQ(bad("recompute_granularity: caf\xE9\n"),
            "x.yaml:1:1: recompute_granularity: must be selective or full, not \"caf\\xe9\"");
}

// A place is the same with a byte order mark and with quotation marks read at their character.
TEST(Yaml, PlacesCountFromTheText) {
  EXPECT_EQ(bad("\xEF\xBB\xBFrecompute_mlp_layers: ! 7\n").find("x.yaml:1:23: "), 0u);
  EXPECT_EQ(bad("# \xC3\xA9\nrecompute_granularity: [\xC3\xA9]\n").find("x.yaml:2:1: "), 0u);
}

TEST(Yaml, NothingStandsWhereItIsMissing) {
  const std::string start = "recompute_granularity: selective\nrecompute_modules:";
  EXPECT_EQ(bad(start + "\n  - mlp\n  -\n\n# end\n").find("x.yaml:4:3: recompute_modules: null"),
            0u);
  EXPECT_EQ(bad(start + " [mlp,\n ,moe]\n").find("x.yaml:2:24: recompute_modules: null"), 0u);
  EXPECT_EQ(bad(start + " [,mlp]\n").find("x.yaml:2:20: recompute_modules: null"), 0u);
}

TEST(Yaml, ControlCharactersAreNoText) {
  EXPECT_EQ(bad(std::string("recompute_granularity: selective\n# a\0b", 38)),
            "x.yaml:2:4: not valid YAML: the control character \\x00");
  // yaml-cpp takes it for the end of the file.
  EXPECT_EQ(bad("recompute_granularity: selective\n\x04recompute_modules: [mlp]\n"),
            "x.yaml:2:1: not valid YAML: the control character \\x04");
  EXPECT_EQ(bad("recompute_granularity: \x1b[2J\n").find("x.yaml:1:24: "), 0u);
}

TEST(Yaml, ErrorsAreCompleteAndSafeToPrint) {
  EXPECT_EQ(bad("recompute_granularity: \"sel\\0ective\"\n"),
            "x.yaml:1:1: recompute_granularity: must be selective or full, not the text "
            "\"sel\\x00ective\"; did you mean \"selective\"?");
  EXPECT_EQ(bad("\"a\\0b\": 1\n").find("x.yaml:1:1: a\\x00b: unknown key; allowed: "), 0u);
  EXPECT_EQ(bad("recompute_granularity: \"\\e[2J\\r\\n\"\n"),
            "x.yaml:1:1: recompute_granularity: must be selective or full, not the text "
            "\"\\x1b[2J\\x0d\\n\"");
  const auto longest = bad("recompute_granularity: " + std::string(100'000, 'a') + "\n");
  EXPECT_EQ(longest, "x.yaml:1:1: recompute_granularity: must be selective or full, not \"" +
                         std::string(80, 'a') + "...\"");
  EXPECT_EQ(parse_config("a: 1", "new\nline.yaml").error().text.find("new\\nline.yaml:1:1: a: "),
            0u);
}

// Each in a time that does not grow with the square of its size.
TEST(Yaml, NothingIsTooLargeToRefuse) {
  const auto many = [](const std::string& one, std::size_t bytes = 250'000) {
    std::string text;
    while (text.size() < bytes) text += one;
    return text;
  };
  for (const char* one :
       {",",    "[",    "{",      "]",   "- ",    "? ",   ": ",   "a: ",      "!", "! ",    "&a ",
        "*a ",  "\"",   "'",      "\n",  "\t",    "#",    "|",    ">",        "%", "---\n", "...\n",
        "{a: ", "[a, ", "a: 1\n", "a\n", "- a\n", "&a [", "<<: ", "\xC3\xA9", "a,"}) {
    const auto config = parse_config(many(one), "x.yaml");
    EXPECT_LT(config.ok() ? 0 : config.error().text.size(), 2000u) << one;
  }
  const std::string key =
      "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_layers: ";
  EXPECT_NE(bad(key + many("1,")).find("has more than 4096 terms"), std::string::npos);
  EXPECT_NE(bad(key + "[" + many("1,") + "1]").find("has more than 4096 terms"), std::string::npos);
  EXPECT_LT(bad(key + many("x")).size(), 500u);
  EXPECT_LT(bad("recompute_granularity: selective\nrecompute_modules: [" + many("x") + "]").size(),
            500u);
  EXPECT_LT(bad("? " + many("x") + "\n: 1").size(), 1500u);
  EXPECT_EQ(bad(std::string(kLargestConfig + 1, '\n')), "x.yaml: is larger than 1048576 bytes");
  EXPECT_TRUE(good(std::string(kLargestConfig, '\n')));
}

TEST(Yaml, DepthAnchorsAndMergeKeys) {
  EXPECT_NE(bad("recompute_modules: " + std::string(100, '[')).find("mappings more than 32 deep"),
            std::string::npos);
  EXPECT_TRUE(good("recompute_granularity: &g selective\nrecompute_modules: &m [mlp]\n"));
  EXPECT_EQ(bad("recompute_granularity: *none\n").find("x.yaml:1:"), 0u);
  EXPECT_NE(bad("<<: {recompute_granularity: full}\n").find("<<: unknown key"), std::string::npos);
  EXPECT_EQ(bad("recompute_granularity: &a [*a]\n"),
            "x.yaml:1:1: recompute_granularity: must be selective or full, not a list");
  EXPECT_NE(bad("~: 1\n").find("a key must be a word"), std::string::npos);
}

}  // namespace
}  // namespace recoup
