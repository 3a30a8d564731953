// What the readers make of model files, and what they refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fixtures.h"

namespace recoup::models {
namespace {

using ::testing::HasSubstr;

TEST(HuggingFace, KnowsWhichLayersAreMoe) {
  const auto v3 = hf(config("deepseek_v3", kDeepSeekV3), 4096).model;
  EXPECT_FALSE(v3.layers[2].moe);
  EXPECT_TRUE(v3.layers[3].moe);
  EXPECT_TRUE(v3.layers[60].moe);
  EXPECT_EQ(v3.shared_ffn, 2048);
  EXPECT_EQ(v3.mtp_layers, 1);
  const auto sparse =
      hf(config("qwen3_moe",
                "\"hidden_size\": 64, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, "
                "\"intermediate_size\": 128, \"num_experts\": 8, \"num_experts_per_tok\": 2, "
                "\"moe_intermediate_size\": 32, \"decoder_sparse_step\": 2, \"vocab_size\": 9"),
         64)
          .model;
  EXPECT_FALSE(sparse.layers[0].moe);
  EXPECT_TRUE(sparse.layers[1].moe);
}

TEST(HuggingFace, SaysWhatItAssumedOfAnUnknownArchitecture) {
  const auto d = hf(config("brandnew", kLlama8B), 2048);
  std::string all;
  for (const auto& a : d.model.assumed) all += a + "\n";
  EXPECT_THAT(all, HasSubstr("\"brandnew\" is not known"));
  EXPECT_THAT(all, HasSubstr("gated MLP"));
  EXPECT_NEAR(layer_bytes(d.model, d.parallel, 0).mlp_full() / kMiB, 224, 0.1);
}

TEST(ModelFile, TakesFloatsAsYamlWritesThem) {
  const auto d = read_recoup(
      "layers: 2\nhidden: 64\nheads: 4\nsequence: 32\nflops_per_second: 9.89e14\nbytes_per_second: "
      "1e12\n",
      "m");
  ASSERT_TRUE(d.ok()) << d.error().text;
  EXPECT_EQ(d.value().parallel.flops_per_second, 9.89e14);
}

std::string error_of(const std::string& yaml) {
  const auto d = read_recoup(yaml, "m.yaml");
  if (!d.ok()) return d.error().text;
  const auto ok = check(d.value().model, d.value().parallel);
  return ok.ok() ? "" : ok.error().text;
}

TEST(ModelFile, RefusesNonsenseWithFileAndKey) {
  const std::string shape = "layers: 4\nhidden: 64\nheads: 4\nsequence: 32\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"hiden: 1\n", "m.yaml: hiden: unknown key; allowed: layers, hidden"},
      {"dropout: 2\n", "m.yaml: dropout: must be a number from 0 to"},
      {"dropout: .nan\n", "m.yaml: dropout: must be a number"},
      {"microbatch: 0\n", "m.yaml: microbatch: must be an integer from 1"},
      {"microbatch: -3\n", "m.yaml: microbatch: must be an integer from 1"},
      {"microbatch: many\n", "not \"many\""},
      {"microbatch: 99999999999999999999\n", "m.yaml: microbatch"},
      {"layers: 6\n", "m.yaml:5: layers: is there twice"},
      {"implementation: jax\n", "must be megatron or libtorch, not \"jax\""},
      {"tensor_parallel: 3\n", "tensor_parallel: 3 does not divide the attention heads, 4"},
      {"pipeline_parallel: 5\n", "pipeline_parallel: 5 stages for 4 layers"},
      {"stages: 1,2\n", "stages: have 3 layers, the model 4"},
      {"stages: 1,x\n", "must be layers a stage such as"},
      {"flops_per_second: fast\n", "m.yaml: flops_per_second: must be a number"},
      {"flops_per_second: [1]\n", "m.yaml:5: flops_per_second: must be one value"},
      {"sequence_parallel: yes please\n", "must be true or false"},
      {"zero: 4\n", "must be an integer from 0 to 3"},
      {"kv_heads: 3\n", "kv_heads: 3 does not divide heads, 4"},
      {"element_size: 3\n", "element_size: must be 2 or 4"},
      {"context_parallel: 5\n", "context_parallel: 5 does not divide the sequence, 32"},
      {"expert_parallel: 2\n", "this model has no experts"},
      {"virtual_stages: 2\n", "needs pipeline_parallel above 1"},
  };
  for (const auto& [line, message] : cases)
    EXPECT_THAT(error_of(shape + line), HasSubstr(message)) << line;
  EXPECT_THAT(error_of("layers: 4\n"), HasSubstr("hidden: is not said"));
  EXPECT_THAT(error_of("layers: 100000000\nhidden: 1\nheads: 1\n"),
              HasSubstr("layers: must be an integer"));
  EXPECT_THAT(error_of("layers: 1\nhidden: 64\nheads: 7\n"),
              HasSubstr("heads: 7 does not divide hidden, 64"));
  EXPECT_THAT(error_of("a: [\n"), HasSubstr("not valid YAML"));
  EXPECT_THAT(error_of("- 1\n"), HasSubstr("must be a mapping"));
}

TEST(HuggingFace, RefusesNonsenseWithFileAndKey) {
  const auto error = [](const std::string& text) {
    const auto d = read_huggingface(text, "config.json");
    return d.ok() ? std::string() : d.error().text;
  };
  EXPECT_THAT(error("{}"), HasSubstr("config.json: is no model: has no num_hidden_layers"));
  EXPECT_THAT(error("[1]"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(error("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("{\"a\": \"\xff\"}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("{\"hidden_size\": 1, \"hidden_size\": 2}"),
              HasSubstr("hidden_size: is there twice"));
  EXPECT_THAT(error("{\"num_hidden_layers\": -2}"),
              HasSubstr("num_hidden_layers: must be an integer"));
  EXPECT_THAT(error("{\"num_hidden_layers\": 1e3}"), HasSubstr("must be an integer"));
  EXPECT_THAT(error("{\"num_hidden_layers\": 100000000}"), HasSubstr("must be an integer"));
  EXPECT_THAT(error("{\"num_hidden_layers\": \"24\"}"), HasSubstr("must be an integer"));
  EXPECT_THAT(error(std::string(100000, '[') + std::string(100000, ']')),
              HasSubstr("nested deeper"));
  EXPECT_THAT(
      error(config("llama",
                   "\"hidden_size\": 64, \"num_hidden_layers\": 2, \"num_attention_heads\": 7")),
      HasSubstr("num_attention_heads: 7 does not divide hidden_size"));
}

TEST(Megatron, ReadsArgumentsAsTheyArePasted) {
  const auto d = read_megatron(
      "GPT_MODEL_ARGS=(\n    --num-layers 32 \\\n    --hidden-size 4096 \\\n  "
      "--num-attention-heads 32\n"
      "    --group-query-attention --num-query-groups 8 --ffn-hidden-size 14336 --swiglu\n"
      "    --normalization RMSNorm --seq-length 8192 --disable-bias-linear  # no biases\n"
      "    --position-embedding-type rope --untie-embeddings-and-output-weights\n)\n"
      "--micro-batch-size 1 --global-batch-size=128 --tensor-model-parallel-size 2 --bf16 --lr "
      "1e-4\n"
      "--pipeline-model-parallel-size 4 --sequence-parallel --hidden-dropout 0 --attention-dropout "
      "0\n"
      "--world-size 32 --use-distributed-optimizer --vocab-size 128256\n",
      "args.sh");
  ASSERT_TRUE(d.ok()) << d.error().text;
  const auto& m = d.value().model;
  const auto& p = d.value().parallel;
  EXPECT_EQ(m.layers.size(), 32u);
  EXPECT_EQ(m.kv_heads, 8);
  EXPECT_EQ(m.activation, Activation::kGated);
  EXPECT_EQ(p.data, 4);
  EXPECT_EQ(p.microbatches, 32);
  EXPECT_EQ(p.zero, 1);
  EXPECT_TRUE(p.fp32_gradients);
  EXPECT_NEAR(all_parameters(m) / 1e9, 8.03, 0.01);
  std::string assumed;
  for (const auto& a : m.assumed) assumed += a + "\n";
  EXPECT_THAT(assumed, HasSubstr("not looked at: --lr"));
  // fc1's two results and fc2's input, on one of two ranks.
  EXPECT_EQ(layer_bytes(m, p, 0).mlp_full(), 3.0 * 8192 * 14336 * 2 / 2);
}

TEST(Megatron, RefusesNonsense) {
  const auto error = [](const std::string& text) {
    const auto d =
        read_megatron("--num-layers 4 --hidden-size 64 --num-attention-heads 4 " + text, "a.sh");
    return d.ok() ? std::string() : d.error().text;
  };
  EXPECT_THAT(error("--num-layers 4"), HasSubstr("--num-layers: is there twice"));
  EXPECT_THAT(error("--seq-length lots"), HasSubstr("--seq-length: must be an integer"));
  EXPECT_THAT(error("--global-batch-size 7 --micro-batch-size 2"),
              HasSubstr("--global-batch-size: 7"));
  EXPECT_THAT(error("--num-experts 4 --moe-layer-freq [1]*3"), HasSubstr("--moe-layer-freq"));
  EXPECT_EQ(error("--num-experts 4 --moe-layer-freq ([0]*1+[1]*3)"), "");
}

}  // namespace
}  // namespace recoup::models
