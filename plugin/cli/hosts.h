// What each host that recoup knows can recompute: the one table for --host.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "recoup/modules.h"
#include "recoup/policy/policy.h"

namespace recoup::cli {

struct HostRow {
  const char* name;
  std::uint32_t modules;  // bits of recoup_module
  const char* meaning;

  bool has(std::uint32_t bit) const { return (modules & bit) != 0; }
};

inline constexpr std::uint32_t kEveryModule = [] {
  std::uint32_t bits = 0;
  for (const auto& module : kModules) bits |= module.bit;
  return bits;
}();

// The first row is the default.
inline constexpr HostRow kHosts[] = {
    {"any", kEveryModule | RECOUP_MLP_ACTIVATION, "a host that can recompute everything"},
    {"gpt_trainer", RECOUP_MLP | RECOUP_MLP_ACTIVATION | RECOUP_CORE_ATTN | RECOUP_MOE,
     "examples/gpt"},
    {"transformer_encoder", RECOUP_MLP | RECOUP_MLP_ACTIVATION,
     "torch::nn::TransformerEncoder through patches/libtorch"},
    {"megatron", kEveryModule, "Megatron-LM through patches/megatron"},
    {"infinitrain", RECOUP_MLP | RECOUP_MLP_ACTIVATION | RECOUP_CORE_ATTN,
     "InfiniTrain through patches/infinitrain"},
    {"ggml", RECOUP_MLP | RECOUP_MLP_ACTIVATION, "ggml and llama.cpp through patches/ggml"},
    {"llmc", RECOUP_MLP | RECOUP_MLP_ACTIVATION, "llm.c through patches/llmc"},
};

// The row of that name; null where there is none.
const HostRow* find_host(const std::string& name);

std::vector<std::string> host_names();

// The host as the policy asks for it.
Model model_of(const HostRow& host, std::int64_t num_layers);

}  // namespace recoup::cli
