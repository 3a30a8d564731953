// The same host through today's host.hpp.
#include <cstdio>
#include <cstdlib>

#include "recoup/host.hpp"

int main(int argc, char** argv) try {
  if (argc != 4) return 2;
  recoup::HostOptions options;
  options.name = "decide";
  options.num_layers = options.stage_num_layers = std::atoll(argv[3]);
  options.modules = ~0u;
  options.capabilities = RECOUP_CAN_FULL | RECOUP_CAN_DISTRIBUTE | RECOUP_CAN_STAGES;
  options.config_yaml = argv[2];
  recoup::Host recoup(argv[1], options);
  for (std::int64_t n = 1; n <= options.num_layers; ++n) {
    const auto layer = recoup.layer({n, n % 3 == 0});
    std::uint32_t modules = 0;
#define ADD(c_name, cc_name, name, bit, layers, meaning) \
  if (layer.recomputes(RECOUP_##c_name)) modules |= RECOUP_##c_name;
    RECOUP_MODULES(ADD)
#undef ADD
    std::printf("%lld mlp=%d modules=%u full=%lld activation=%d distribute=%d profile=0\n",
                static_cast<long long>(n), layer.recompute_mlp(), modules,
                static_cast<long long>(layer.full_group()), layer.mlp_activation_only(),
                layer.distribute_saved_activations());
  }
  recoup.close();
  return 0;
} catch (const std::exception& e) {
  std::printf("%s\n", e.what());
  return 1;
}
