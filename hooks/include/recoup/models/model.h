// A transformer as recoup's closed forms need it, and the readers that make one: Hugging Face's
// config.json, Megatron-LM's arguments, recoup's own model file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "recoup/result.h"

namespace recoup::models {

// Whose operators: they save different tensors for the same mathematics.
enum class Implementation { kHuggingFace, kMegatron, kLibtorch };
enum class Attention { kEager, kFlash };  // kFlash: also PyTorch's fused SDPA
// How the chosen experts run: one grouped product, a loop, or a batched product of gathered
// weights.
enum class Experts { kGrouped, kLoop, kBatched };
enum class Norm {
  kLayer,
  kRms,
  kRmsOnePlus
};  // kRmsOnePlus: Gemma's, whose weight is 1 + w in fp32
// kGeluTanh: a tanh GELU written in Python, as Hugging Face's gelu_new.
enum class Activation { kGelu, kGeluTanh, kGated };

struct Layer {
  bool moe = false;
  std::int64_t ffn = 0;  // of the dense MLP; 0 in an MoE layer
};

struct Model {
  std::string name;  // of the architecture, for people
  Implementation implementation = Implementation::kHuggingFace;
  std::vector<Layer> layers;
  std::int64_t mtp_layers = 0;  // multi-token prediction: further layers on the last stage

  std::int64_t hidden = 0, heads = 0, kv_heads = 0, head_size = 0, vocabulary = 0;
  std::int64_t positions = 0;  // learned position embeddings; 0: rotary
  bool tied_embeddings = false;

  Attention attention = Attention::kFlash;
  bool attention_bias = false, mlp_bias = false, qk_norm = false;
  bool parallel_block = false;  // attention and MLP side by side
  std::int64_t norms = 2;       // before and after blocks, a layer
  bool fused_qkv = false;       // one GEMM whose result query, key and value are views of
  Norm norm = Norm::kRms;
  Activation activation = Activation::kGated;
  double dropout = 0, attention_dropout = 0;

  // Multi-head latent attention; 0: none. query_rank may be 0 (query without a low rank).
  std::int64_t query_rank = 0, kv_rank = 0, rope_size = 0, nope_size = 0, value_size = 0;

  // Mixture of experts.
  std::int64_t experts = 0, chosen = 0, expert_ffn = 0, shared_ffn = 0;
  Experts experts_by = Experts::kGrouped;
  bool fp32_router = false;

  double act_bytes = 2;   // an element of an activation: 2 or 4
  double gemm_bytes = 2;  // an element of a GEMM's saved input: act_bytes, or fp8 with its scales
  std::int64_t weight_bytes = 2;

  // The largest sequence that the file speaks of; 0: none.
  std::int64_t sequence = 0;
  // What the file did not say and was assumed, a sentence each.
  std::vector<std::string> assumed;

  bool mla() const { return kv_rank > 0; }
  // Elements a token: of the query, of the key or value, of attention's result.
  std::int64_t query_width() const { return heads * head_size; }
  std::int64_t kv_width() const { return kv_heads * head_size; }
  std::int64_t result_width() const { return heads * (mla() ? value_size : head_size); }
};

// How the model is spread over ranks, and one step's work.
struct Parallel {
  std::int64_t tensor = 1, context = 1, expert = 1, data = 1, pipeline = 1;
  bool sequence_parallel = false;
  std::int64_t zero = 0;                         // 0..3; 1: Megatron's distributed optimizer
  std::int64_t virtual_stages = 1;               // interleaved: chunks of layers a stage
  std::vector<std::int64_t> stages;              // layers of each stage; empty: as even as can be
  std::int64_t first_stage = 0, last_stage = 0;  // layers of these two; 0: as the others
  std::string schedule = "1f1b";                 // 1f1b, interleaved, gpipe or zero-bubble
  bool fp32_gradients = false;
  std::string optimizer = "adam";  // adam, sgd or none
  std::int64_t sequence = 0, microbatch = 1, microbatches = 1;
  double flops_per_second = 4e14, bytes_per_second = 2e12;  // that the device reaches
};

struct Described {
  Model model;
  Parallel parallel;
};

// Reads a file of any of the three kinds. An error names the file, and the key where one is wrong.
Result<Described> read_model(const std::string& path);
// The same for text; `name` stands for the file.
Result<Described> read_huggingface(const std::string& json, const std::string& name);
Result<Described> read_megatron(const std::string& text, const std::string& name);
Result<Described> read_recoup(const std::string& yaml, const std::string& name);

// Sets one option of a model file by its key ("tensor_parallel", "sequence", "stages", "precision",
// "attention" ...; the program's flags have the same names). An error names the key and what is
// allowed.
Result<bool> set_option(Described& described, const std::string& key, const std::string& value);
struct OptionRow {
  const char* key;
  const char* meaning;
};
const std::vector<OptionRow>& option_keys();

// Whether the model can be spread so: one sentence with key and numbers where it cannot.
Result<bool> check(const Model& model, const Parallel& parallel);

// The layers of each pipeline stage, in order. Precondition: check().
std::vector<std::int64_t> stage_layers(const Model& model, const Parallel& parallel);
// How many microbatches stage `stage` holds activations of at once, in whole stages' worth:
// interleaved schedules hold parts.
double in_flight(const Parallel& parallel, std::int64_t stage);

}  // namespace recoup::models
