// Bytes of known models' layers against measured ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fixtures.h"

namespace recoup::models {
namespace {

// What autograd really saved in one layer of Hugging Face's implementation, bf16, SDPA.
struct Measured {
  const char *type, *numbers;
  std::int64_t sequence;
  double layer, mlp;  // MiB
};

class RealLayers : public ::testing::TestWithParam<Measured> {};

TEST_P(RealLayers, AreWithinAPercent) {
  const auto& c = GetParam();
  const auto d = hf(config(c.type, c.numbers), c.sequence);
  const auto bytes = layer_bytes(d.model, d.parallel, 0);
  EXPECT_NEAR((bytes.total() + bytes.once) / kMiB / c.layer, 1, 0.01);
  EXPECT_NEAR(bytes.mlp_full() / kMiB / c.mlp, 1, 0.01);
}

INSTANTIATE_TEST_SUITE_P(HuggingFace, RealLayers,
                         ::testing::Values(Measured{"llama", kLlama8B, 2048, 393.3, 224.0},
                                           Measured{"llama", kLlama8B, 8192, 1573.1, 896.0},
                                           Measured{"llama", kLlama70B, 8192, 3110.1, 1792.0},
                                           Measured{"qwen2", kQwen25, 8192, 1764.9, 1184.0},
                                           Measured{"qwen3", kQwen3, 8192, 1686.3, 768.0}));

// transformers 5.24.0 on real tensors, bf16, one sequence of 128: all that autograd saves in the
// layer.
TEST(HuggingFace, ExpertsSaveWhatTheirImplementationSaves) {
  auto d =
      hf(config("mixtral",
                "\"hidden_size\": 256, \"num_hidden_layers\": 1, \"num_attention_heads\": 8, "
                "\"num_key_value_heads\": 2, \"intermediate_size\": 448, \"vocab_size\": 64, "
                "\"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"hidden_act\": \"silu\""),
         128);
  const std::vector<std::pair<const char*, double>> measured = {
      {"grouped", 1904160}, {"loop", 2033152}, {"batched", 178058752}};
  for (const auto& [experts, bytes] : measured) {
    ASSERT_TRUE(set_option(d, "experts", experts).ok());
    const auto layer = layer_bytes(d.model, d.parallel, 0);
    EXPECT_NEAR((layer.total() + layer.once) / bytes, 1, 0.005) << experts;
  }
}

TEST(HuggingFace, DeepSeeksExpertsAndNorms) {
  const auto d = hf(
      config(
          "deepseek_v3",
          "\"hidden_size\": 256, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
          "\"num_key_value_heads\": 4, \"intermediate_size\": 512, \"moe_intermediate_size\": 96, "
          "\"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"n_shared_experts\": 1, "
          "\"first_k_dense_replace\": 1, \"q_lora_rank\": 96, \"kv_lora_rank\": 64, "
          "\"qk_nope_head_dim\": 32, \"qk_rope_head_dim\": 16, \"v_head_dim\": 32, \"vocab_size\": "
          "64, "
          "\"hidden_act\": \"silu\""),
      128);
  double experts = 0, norms = 0;
  for (const auto& t : saved_by(d.model, d.parallel, 1)) {
    if (t.part == "moe" || t.part == "shared") experts += t.bytes();
    if (t.part == "norm") norms += t.bytes();
  }
  EXPECT_NEAR(experts / 774688, 1, 0.01);
  EXPECT_EQ(norms, 2 * (131072 + 512 + 65536));
}

TEST(HuggingFace, CountsParameters) {
  const auto billions = [](const char* type, const char* numbers) {
    return all_parameters(hf(config(type, numbers), 8192).model) / 1e9;
  };
  EXPECT_NEAR(billions("llama", kLlama8B), 8.03, 0.01);
  EXPECT_NEAR(billions("llama", kLlama70B), 70.55, 0.1);
  EXPECT_NEAR(billions("qwen2", kQwen25), 7.62, 0.01);
  EXPECT_NEAR(billions("qwen3", kQwen3), 8.19, 0.01);
  EXPECT_NEAR(billions("mixtral", kMixtral), 46.7, 0.1);
  EXPECT_NEAR(billions("deepseek_v3", kDeepSeekV3), 671, 1);
}

TEST(HuggingFace, EagerAttentionSavesScoresThatCoreAttnFrees) {
  auto d = hf(config("llama", kLlama8B), 2048);
  const auto flash = layer_bytes(d.model, d.parallel, 0);
  ASSERT_TRUE(set_option(d, "attention", "eager").ok());
  const auto eager = layer_bytes(d.model, d.parallel, 0);
  // 32 heads of 2048 x 2048 in fp32 and in bf16, and what repeating key and value adds.
  EXPECT_EQ(eager.of(Frees::kCoreAttn), 32.0 * 2048 * 2048 * 6 + 2.0 * 2048 * (4096 - 1024) * 2);
  EXPECT_EQ(flash.of(Frees::kCoreAttn), 32.0 * 2048 * 4);
}

TEST(ModelFile, WithoutDropoutThereAreNoMasks) {
  const std::string shape = "layers: 2\nhidden: 64\nheads: 4\nsequence: 32\n";
  for (const char* kind : {"megatron", "libtorch"}) {
    const auto with = read_recoup(shape + "implementation: " + kind + "\n", "m").value();
    const auto without =
        read_recoup(shape + "dropout: 0\nimplementation: " + kind + "\n", "m").value();
    EXPECT_LT(layer_bytes(without.model, without.parallel, 0).total(),
              layer_bytes(with.model, with.parallel, 0).total());
  }
  const auto d = read_recoup(shape + "dropout: 0\n", "m").value();
  const double sbh = 32.0 * 64;
  // 34 less the two masks of sbh, and 2 a s s b of 5.
  EXPECT_EQ(layer_bytes(d.model, d.parallel, 0).total(), sbh * 32 + 2.0 * 4 * 32 * 32);
}

}  // namespace
}  // namespace recoup::models
