// Recorded timelines in, plans out, byte for byte: on every machine, with every compiler.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "recoup/budget/choose.h"

namespace recoup::budget::testing {
namespace {

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_plan(std::ostream& out, const char* rule, std::int64_t budget, const Choice& c) {
  out << rule << " " << budget << ": " << (c.fits ? "fits" : "does not fit") << ", peak "
      << c.prediction.peak << " at event " << c.prediction.holder << ", " << c.prediction.cost_ns
      << " ns, levels ";
  for (const auto l : c.decisions) out << index(l);
  out << "\n";
}

// Eleven budgets from below the floor to the plain peak, without and with the pipeline's rule.
std::string plans(const Model& model) {
  std::ostringstream out;
  const auto plain = model.predict(model.kept()).peak, full = model.predict(model.deepest()).peak;
  out << "plain " << plain << "\nfull " << full << "\nleast " << least_budget(model) << "\n";
  for (int k = -1; k <= 9; ++k) {
    const auto budget = full + (plain - full) * k / 9;
    write_plan(out, "budget", budget, choose(model, budget));
    write_plan(out, "pipeline", budget, choose(model, budget, Options{Pipeline{1}}));
  }
  return out.str();
}

TEST(Replay, RecordedTimelinesGiveTheSamePlans) {
  int timelines = 0;
  for (const auto& entry : std::filesystem::directory_iterator(BUDGET_DATA)) {
    if (entry.path().extension() != ".timeline") continue;
    ++timelines;
    const auto text = read(entry.path());
    const auto parsed = parse(text, entry.path().filename());
    ASSERT_TRUE(parsed.ok()) << parsed.error().text;
    EXPECT_EQ(format(parsed.value()), text);
    auto expected = entry.path();
    expected.replace_extension(".plans");
    EXPECT_EQ(plans(Model::from(parsed.value()).value()), read(expected)) << expected;
  }
  EXPECT_EQ(timelines, 5);
}

}  // namespace
}  // namespace recoup::budget::testing
