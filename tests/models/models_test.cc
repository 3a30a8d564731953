// Bytes of known models' layers against measured ones and against arXiv 2205.05198.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "recoup/models/memory.h"
#include "recoup/models/model.h"
#include "recoup/models/step.h"

namespace recoup::models {
namespace {

using ::testing::HasSubstr;

constexpr double kMiB = 1 << 20;

std::string config(const std::string& type, const std::string& numbers) {
  return "{\"model_type\": \"" + type + "\", \"torch_dtype\": \"bfloat16\", " + numbers + "}";
}

Described hf(const std::string& json, std::int64_t sequence) {
  auto d = read_huggingface(json, "config.json");
  if (!d.ok()) throw std::runtime_error(d.error().text);
  d.value().parallel.sequence = sequence;
  return d.value();
}

const char kLlama8B[] =
    "\"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, "
    "\"num_key_value_heads\": 8, \"intermediate_size\": 14336, \"vocab_size\": 128256, "
    "\"hidden_act\": \"silu\"";
const char kLlama70B[] =
    "\"hidden_size\": 8192, \"num_hidden_layers\": 80, \"num_attention_heads\": 64, "
    "\"num_key_value_heads\": 8, \"intermediate_size\": 28672, \"vocab_size\": 128256, "
    "\"hidden_act\": \"silu\"";
const char kQwen25[] =
    "\"hidden_size\": 3584, \"num_hidden_layers\": 28, \"num_attention_heads\": 28, "
    "\"num_key_value_heads\": 4, \"intermediate_size\": 18944, \"vocab_size\": 152064, "
    "\"hidden_act\": \"silu\"";
const char kQwen3[] =
    "\"hidden_size\": 4096, \"num_hidden_layers\": 36, \"num_attention_heads\": 32, "
    "\"num_key_value_heads\": 8, \"head_dim\": 128, \"intermediate_size\": 12288, "
    "\"vocab_size\": 151936, \"hidden_act\": \"silu\"";
const char kDeepSeekV3[] =
    "\"hidden_size\": 7168, \"num_hidden_layers\": 61, \"num_attention_heads\": 128, "
    "\"num_key_value_heads\": 128, \"intermediate_size\": 18432, \"moe_intermediate_size\": 2048, "
    "\"n_routed_experts\": 256, \"num_experts_per_tok\": 8, \"n_shared_experts\": 1, "
    "\"first_k_dense_replace\": 3, \"moe_layer_freq\": 1, \"q_lora_rank\": 1536, "
    "\"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"v_head_dim\": "
    "128, "
    "\"vocab_size\": 129280, \"num_nextn_predict_layers\": 1, \"hidden_act\": \"silu\"";
const char kMixtral[] =
    "\"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, "
    "\"num_key_value_heads\": 8, \"intermediate_size\": 14336, \"vocab_size\": 32000, "
    "\"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"hidden_act\": \"silu\"";

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

TEST(HuggingFace, EagerAttentionSavesScoresThatCoreAttnFrees) {
  auto d = hf(config("llama", kLlama8B), 2048);
  const auto flash = layer_bytes(d.model, d.parallel, 0);
  ASSERT_TRUE(set_option(d, "attention", "eager").ok());
  const auto eager = layer_bytes(d.model, d.parallel, 0);
  // 32 heads of 2048 x 2048 in fp32 and in bf16, and the repeated key and value.
  EXPECT_EQ(eager.of(Frees::kCoreAttn), 32.0 * 2048 * 2048 * 6 + 2.0 * 2048 * 4096 * 2);
  EXPECT_EQ(flash.of(Frees::kCoreAttn), 32.0 * 2048 * 4);
}

// arXiv 2205.05198, equations 1, 2, 4 and 6.
struct PaperShape {
  const char* name;
  std::int64_t layers, hidden, heads, sequence;
  double term, percent;  // 5 a s / h, and what core attention is of a layer
};

class Paper : public ::testing::TestWithParam<PaperShape> {
 protected:
  Described model(std::int64_t tensor, bool sequence_parallel) const {
    const auto& s = GetParam();
    auto d = read_recoup(
        "layers: " + std::to_string(s.layers) + "\nhidden: " + std::to_string(s.hidden) +
            "\nheads: " + std::to_string(s.heads) + "\nsequence: " + std::to_string(s.sequence) +
            "\nmicrobatch: 4\ntensor_parallel: " + std::to_string(tensor) +
            "\nsequence_parallel: " + (sequence_parallel ? "true" : "false") + "\n",
        "m.yaml");
    if (!d.ok()) throw std::runtime_error(d.error().text);
    return d.value();
  }
};

TEST_P(Paper, LayersAreAsItsEquationsSay) {
  const auto& s = GetParam();
  const double sbh = static_cast<double>(s.sequence * 4 * s.hidden);
  const double scores =
      5.0 * static_cast<double>(s.heads * s.sequence) / static_cast<double>(s.hidden);
  EXPECT_EQ(scores, s.term);
  for (const std::int64_t t : {1, 8}) {
    const auto tt = static_cast<double>(t);
    const auto one = model(t, false);
    EXPECT_NEAR(
        layer_bytes(one.model, one.parallel, 0).total() / (sbh * (10 + 24 / tt + scores / tt)), 1,
        1e-9);
    if (t == 1) continue;
    const auto both = model(t, true);
    const auto bytes = layer_bytes(both.model, both.parallel, 0);
    EXPECT_NEAR(bytes.total() / (sbh / tt * (34 + scores)), 1, 1e-9);
    EXPECT_NEAR((bytes.total() - bytes.of(Frees::kCoreAttn)) / (sbh / tt * 34), 1, 1e-9);
    EXPECT_NEAR(bytes.mlp_full() / (sbh / tt * 16), 1, 1e-9);
    EXPECT_NEAR(bytes.input / (2 * sbh / tt), 1, 1e-9);
    EXPECT_EQ(std::lround(100 * bytes.of(Frees::kCoreAttn) / bytes.total()),
              std::lround(s.percent));
  }
}

INSTANTIATE_TEST_SUITE_P(Table3, Paper,
                         ::testing::Values(PaperShape{"22B", 48, 6144, 64, 2048,
                                                      5.0 * 64 * 2048 / 6144, 76},
                                           PaperShape{"175B", 96, 12288, 96, 2048, 80, 70},
                                           PaperShape{"530B", 105, 20480, 128, 2048, 64, 65},
                                           PaperShape{"1T", 128, 25600, 160, 2048, 64, 65}),
                         [](const auto& info) { return "of_" + std::string(info.param.name); });

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

TEST(Stages, AreUnevenWhereTheyMustBe) {
  const auto stages = [](std::int64_t layers, const std::string& rest) {
    const auto d = read_recoup(
        "layers: " + std::to_string(layers) + "\nhidden: 64\nheads: 4\nsequence: 32\n" + rest, "m");
    if (!d.ok()) throw std::runtime_error(d.error().text);
    const auto ok = check(d.value().model, d.value().parallel);
    if (!ok.ok()) throw std::runtime_error(ok.error().text);
    return stage_layers(d.value().model, d.value().parallel);
  };
  using Layers = std::vector<std::int64_t>;
  EXPECT_EQ(stages(126, "pipeline_parallel: 16\n"),
            (Layers{7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7}));
  EXPECT_EQ(stages(61, "pipeline_parallel: 16\n"),
            (Layers{3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3}));
  EXPECT_EQ(stages(10, "pipeline_parallel: 4\nfirst_stage: 1\nlast_stage: 3\n"),
            (Layers{1, 3, 3, 3}));
  EXPECT_EQ(stages(30, "stages: 7,8x2,7\n"), (Layers{7, 8, 8, 7}));
}

TEST(Stages, HoldTheMicrobatchesOfTheirSchedule) {
  Parallel p;
  p.pipeline = 8, p.microbatches = 64;
  EXPECT_EQ(in_flight(p, 0), 8);
  EXPECT_EQ(in_flight(p, 7), 1);
  p.schedule = "gpipe";
  EXPECT_EQ(in_flight(p, 3), 64);
  p.schedule = "interleaved", p.virtual_stages = 2;
  EXPECT_EQ(in_flight(p, 0),
            (14 + 8 + 1) / 2.0);  // the paper's 1 + (p - 1) / (p m) of p stages, about
  p.schedule = "1f1b", p.microbatches = 2;
  EXPECT_EQ(in_flight(p, 0), 2);
}

TEST(Stages, TheTimelineHoldsWhatTheTableSays) {
  auto d = hf(config("llama", kLlama8B), 8192);
  d.parallel.pipeline = 4, d.parallel.microbatches = 8, d.parallel.tensor = 8,
  d.parallel.sequence_parallel = true;
  for (std::int64_t s = 0; s < 4; ++s) {
    const auto stage = stage_of(d, s, RECOUP_MLP | RECOUP_MLP_ACTIVATION).value();
    ASSERT_TRUE(budget::check(stage.timeline).ok()) << budget::check(stage.timeline).error().text;
    const auto model = budget::Model::from(stage.timeline).value();
    const auto plain = model.predict(model.kept()).peak, full = model.predict(model.deepest()).peak;
    const auto saved =
        static_cast<std::int64_t>(static_cast<double>(stage.activations) * stage.in_flight);
    EXPECT_GT(plain, stage.at_rest + saved);
    EXPECT_LT(plain,
              stage.at_rest + saved + stage.logits * 3 + stage.gradients + stage.activations);
    // 8 layers' MLPs less in each microbatch in flight, but for the one that is being rerun.
    const auto mlp = layer_bytes(d.model, d.parallel, 0).mlp_full();
    EXPECT_LE(full, plain - static_cast<std::int64_t>(mlp * 8 * stage.in_flight * 0.6));
  }
}

TEST(Stages, LargerThanAnyDeviceIsRefused) {
  auto d = hf(config("llama", kLlama8B), std::int64_t{1} << 32);
  d.parallel.microbatch = std::int64_t{1} << 32;
  EXPECT_FALSE(stage_of(d, 0, RECOUP_MLP).ok());
}

}  // namespace
}  // namespace recoup::models
