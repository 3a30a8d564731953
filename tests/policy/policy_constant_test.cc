// The quick hack's CMake constant: this binary has its own policy.cc, compiled with the constant
// set to 12.
#include <gtest/gtest.h>

#include <cstdlib>

#include "recoup/policy/policy.h"

namespace recoup {
namespace {

constexpr char kVariable[] = "RECOUP_RECOMPUTE_MLP_NUM_LAYERS";

TEST(PolicyConstant, DecidesUnlessTheEnvironmentDoes) {
  ::unsetenv(kVariable);
  const auto constant = Policy::find_override().value();
  ASSERT_TRUE(constant.has_value());
  EXPECT_EQ(constant->mlp_num_layers, 12);
  EXPECT_EQ(constant->source, "CMake constant RECOUP_RECOMPUTE_MLP_NUM_LAYERS");
  const auto policy = Policy::create(Config(), constant, Model()).value();
  EXPECT_TRUE(policy.recomputes(Module::kMlp, {12}));
  EXPECT_FALSE(policy.recomputes(Module::kMlp, {13}));

  ::setenv(kVariable, "3", 1);
  EXPECT_EQ(Policy::find_override().value()->mlp_num_layers, 3);
  ::unsetenv(kVariable);
}

}  // namespace
}  // namespace recoup
