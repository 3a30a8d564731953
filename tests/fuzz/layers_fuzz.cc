// libFuzzer: layer expressions against their naive twin. The first byte is the model's size.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "compare_layers.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // std::regex needs stack for each character.
  if (size < 1 || size > 256) return 0;
  const std::string expression(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto what = recoup::disagreement(expression, 1 + data[0] % 32);
  if (!what.empty()) {
    std::fprintf(stderr, "%d layers, \"%s\": %s\n", 1 + data[0] % 32, expression.c_str(),
                 what.c_str());
    std::abort();
  }
  return 0;
}
