// Models that several tests read.
#pragma once

#include <stdexcept>
#include <string>

#include "recoup/models/memory.h"
#include "recoup/models/model.h"

namespace recoup::models {

inline constexpr double kMiB = 1 << 20;

inline std::string config(const std::string& type, const std::string& numbers) {
  return "{\"model_type\": \"" + type + "\", \"torch_dtype\": \"bfloat16\", " + numbers + "}";
}

inline Described hf(const std::string& json, std::int64_t sequence) {
  auto d = read_huggingface(json, "config.json");
  if (!d.ok()) throw std::runtime_error(d.error().text);
  d.value().parallel.sequence = sequence;
  return d.value();
}

inline const char kLlama8B[] =
    "\"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, "
    "\"num_key_value_heads\": 8, \"intermediate_size\": 14336, \"vocab_size\": 128256, "
    "\"hidden_act\": \"silu\"";
inline const char kLlama70B[] =
    "\"hidden_size\": 8192, \"num_hidden_layers\": 80, \"num_attention_heads\": 64, "
    "\"num_key_value_heads\": 8, \"intermediate_size\": 28672, \"vocab_size\": 128256, "
    "\"hidden_act\": \"silu\"";
inline const char kQwen25[] =
    "\"hidden_size\": 3584, \"num_hidden_layers\": 28, \"num_attention_heads\": 28, "
    "\"num_key_value_heads\": 4, \"intermediate_size\": 18944, \"vocab_size\": 152064, "
    "\"hidden_act\": \"silu\"";
inline const char kQwen3[] =
    "\"hidden_size\": 4096, \"num_hidden_layers\": 36, \"num_attention_heads\": 32, "
    "\"num_key_value_heads\": 8, \"head_dim\": 128, \"intermediate_size\": 12288, "
    "\"vocab_size\": 151936, \"hidden_act\": \"silu\"";
inline const char kDeepSeekV3[] =
    "\"hidden_size\": 7168, \"num_hidden_layers\": 61, \"num_attention_heads\": 128, "
    "\"num_key_value_heads\": 128, \"intermediate_size\": 18432, \"moe_intermediate_size\": 2048, "
    "\"n_routed_experts\": 256, \"num_experts_per_tok\": 8, \"n_shared_experts\": 1, "
    "\"first_k_dense_replace\": 3, \"moe_layer_freq\": 1, \"q_lora_rank\": 1536, "
    "\"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"v_head_dim\": "
    "128, "
    "\"vocab_size\": 129280, \"num_nextn_predict_layers\": 1, \"hidden_act\": \"silu\"";
inline const char kMixtral[] =
    "\"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, "
    "\"num_key_value_heads\": 8, \"intermediate_size\": 14336, \"vocab_size\": 32000, "
    "\"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"hidden_act\": \"silu\"";

}  // namespace recoup::models
