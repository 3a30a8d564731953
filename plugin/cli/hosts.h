// What each host that recoup knows can recompute: the one table for --host.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "recoup/plugin.h"
#include "recoup/policy/policy.h"

namespace recoup::cli {

struct HostRow {
  const char* name;
  std::uint32_t modules;       // bits of recoup_module
  std::uint64_t capabilities;  // bits of recoup_capability
  const char* meaning;

  bool has(std::uint32_t bit) const { return (modules & bit) != 0; }
};

inline constexpr std::uint32_t kEveryModule = [] {
  std::uint32_t bits = 0;
  for (const auto& module : kModules) bits |= module.bit;
  return bits;
}();

inline constexpr std::uint32_t kMlpAtBothLevels = RECOUP_MLP | RECOUP_MLP_ACTIVATION;
inline constexpr std::uint64_t kEveryCapability =
    RECOUP_CAN_FULL | RECOUP_CAN_DISTRIBUTE | RECOUP_CAN_STAGES | RECOUP_CAN_COUNT_MLPS;

// What each says of itself to the plugin. The first row is the default.
inline constexpr HostRow kHosts[] = {
    {"any", kEveryModule | RECOUP_MLP_ACTIVATION, kEveryCapability,
     "a host that can recompute everything"},
    {"gpt_trainer", kMlpAtBothLevels | RECOUP_CORE_ATTN | RECOUP_MOE,
     RECOUP_CAN_FULL | RECOUP_CAN_DISTRIBUTE | RECOUP_CAN_STAGES | RECOUP_CAN_BUDGET,
     "examples/gpt"},
    {"transformer_encoder", kMlpAtBothLevels, 0,
     "torch::nn::TransformerEncoder through patches/libtorch"},
    {"megatron", kEveryModule, kEveryCapability, "Megatron-LM through patches/megatron"},
    {"infinitrain", kMlpAtBothLevels | RECOUP_CORE_ATTN, RECOUP_CAN_FULL | RECOUP_CAN_STAGES,
     "InfiniTrain through patches/infinitrain"},
    {"ggml", kMlpAtBothLevels, RECOUP_CAN_STAGES | RECOUP_CAN_COUNT_MLPS,
     "ggml and llama.cpp through patches/ggml"},
    {"llmc", kMlpAtBothLevels, RECOUP_CAN_STAGES | RECOUP_CAN_COUNT_MLPS,
     "llm.c through patches/llmc"},
};

// The row of that name; null where there is none.
const HostRow* find_host(const std::string& name);

std::vector<std::string> host_names();

// The host as the policy asks for it.
Model model_of(const HostRow& host, std::int64_t num_layers);

}  // namespace recoup::cli
