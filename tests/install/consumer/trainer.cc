// A host without tensors: asks the policy about three layers. It has a YAML::Parser of its own, as
// a program with another yaml-cpp would: the plugin's must not meet it.
#include <cstdio>
#include <cstdlib>
#include <istream>

#include "recoup/host.hpp"

namespace YAML {
class Parser {
 public:
  explicit Parser(std::istream&);
};
Parser::Parser(std::istream&) { std::abort(); }
}  // namespace YAML

int main(int argc, char** argv) {
  recoup::HostOptions options;
  options.config_path = argv[1];
  options.num_layers = 24;
  recoup::Host host(argc > 2 ? argv[2] : PLUGIN, options);
  for (int number : {1, 12, 13}) {
    std::printf("%d %d\n", number, host.layer({number}).recompute_mlp());
  }
}
