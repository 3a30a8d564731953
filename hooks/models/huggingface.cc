// Hugging Face's config.json, as it is.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "recoup/models/model.h"
#include "values.h"

namespace recoup::models {
namespace {

using Json = nlohmann::json;

// What an architecture is where its file does not say so.
struct Family {
  const char* type;  // model_type
  Norm norm;
  std::int64_t norms;
  bool gated, fused_qkv, parallel_block, qk_norm, tied, learned_positions;
  bool attention_bias, mlp_bias;
};
constexpr Family kFamilies[] = {
    // type           norm               norms gated  fused  par.   qknorm tied   posit. a.bias
    // m.bias
    {"llama", Norm::kRms, 2, true, false, false, false, false, false, false, false},
    {"llama4_text", Norm::kRms, 2, true, false, false, true, false, false, false, false},
    {"mistral", Norm::kRms, 2, true, false, false, false, false, false, false, false},
    {"mistral3", Norm::kRms, 2, true, false, false, false, false, false, false, false},
    {"ministral", Norm::kRms, 2, true, false, false, false, false, false, false, false},
    {"mixtral", Norm::kRms, 2, true, false, false, false, false, false, false, false},
    {"qwen2", Norm::kRms, 2, true, false, false, false, false, false, true, false},
    {"qwen2_moe", Norm::kRms, 2, true, false, false, false, false, false, true, false},
    {"qwen3", Norm::kRms, 2, true, false, false, true, false, false, false, false},
    {"qwen3_moe", Norm::kRms, 2, true, false, false, true, false, false, false, false},
    {"gemma", Norm::kRmsOnePlus, 2, true, false, false, false, true, false, false, false},
    {"gemma2", Norm::kRmsOnePlus, 4, true, false, false, false, true, false, false, false},
    {"gemma3_text", Norm::kRmsOnePlus, 4, true, false, false, true, true, false, false, false},
    {"phi3", Norm::kRms, 2, true, true, false, false, false, false, false, false},
    {"phi", Norm::kLayer, 1, false, false, true, false, false, false, true, true},
    {"deepseek_v2", Norm::kRms, 2, true, false, false, false, false, false, false, false},
    {"deepseek_v3", Norm::kRms, 2, true, false, false, false, false, false, false, false},
    {"gpt2", Norm::kLayer, 2, false, true, false, false, true, true, true, true},
    {"gpt_neox", Norm::kLayer, 2, false, true, true, false, false, false, true, true},
};

// A key of the configuration by any of its names; the first that is there and not null.
class Keys {
 public:
  Keys(const Json& json, const std::string& name) : json_(json), name_(name) {}

  const Json* find(std::initializer_list<const char*> names, std::string* which = nullptr) const {
    for (const auto* n : names) {
      const auto at = json_.find(n);
      if (at == json_.end() || at->is_null()) continue;
      if (which != nullptr) *which = n;
      return &*at;
    }
    return nullptr;
  }

  // 0 where none is there.
  std::int64_t integer(std::initializer_list<const char*> names, std::int64_t most = kMostSize) {
    std::string which;
    const auto* value = find(names, &which);
    if (value == nullptr) return 0;
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() &&
         value->get<std::uint64_t>() > static_cast<std::uint64_t>(most)) ||
        value->get<std::int64_t>() < 0 || value->get<std::int64_t>() > most) {
      fail(which,
           "must be an integer from 0 to " + std::to_string(most) + ", not " + shown(*value));
      return 0;
    }
    return value->get<std::int64_t>();
  }

  double fraction(std::initializer_list<const char*> names, double fallback) {
    std::string which;
    const auto* value = find(names, &which);
    if (value == nullptr) return fallback;
    if (!value->is_number() || !(value->get<double>() >= 0) || !(value->get<double>() < 1)) {
      fail(which, "must be a number from 0 to below 1, not " + shown(*value));
      return fallback;
    }
    return value->get<double>();
  }

  bool flag(const char* key, bool fallback) {
    const auto* value = find({key});
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) {
      fail(key, "must be true or false, not " + shown(*value));
      return fallback;
    }
    return value->get<bool>();
  }

  std::string word(std::initializer_list<const char*> names) {
    std::string which;
    const auto* value = find(names, &which);
    if (value == nullptr) return {};
    if (!value->is_string()) {
      fail(which, "must be a text, not " + shown(*value));
      return {};
    }
    return value->get<std::string>();
  }

  static std::string shown(const Json& value) {
    auto text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() > 40 ? text.substr(0, 37) + "..." : text;
  }

  void fail(const std::string& key, const std::string& what) {
    if (error_.empty()) error_ = name_ + ": " + key + ": " + what;
  }
  const std::string& error() const { return error_; }

 private:
  const Json& json_;
  const std::string& name_;
  std::string error_;
};

// Parses, with duplicate keys and depth as errors.
Result<Json> parse_json(const std::string& text, const std::string& name) {
  std::vector<std::set<std::string>> open;
  std::string wrong;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > 64 && wrong.empty()) wrong = "is nested deeper than 64";
    if (event == Json::parse_event_t::object_start) open.emplace_back();
    if (event == Json::parse_event_t::object_end) open.pop_back();
    if (event == Json::parse_event_t::key && wrong.empty() && !open.empty() &&
        !open.back().insert(value.get<std::string>()).second) {
      wrong = value.get<std::string>() + ": is there twice";
    }
    return wrong.empty();
  };
  Json json;
  try {
    json = Json::parse(text, watch);
  } catch (const Json::exception& e) {
    const std::string what = e.what();
    return Error{name + ": not valid JSON: " + what.substr(what.find("] ") + 2)};
  }
  if (!wrong.empty()) return Error{name + ": " + wrong};
  if (!json.is_object()) return Error{name + ": must be a JSON object, Hugging Face's config.json"};
  return json;
}

void read_experts(Keys& keys, const std::string& type, Model& m, std::vector<Layer>& layers) {
  m.experts = keys.integer({"num_local_experts", "num_experts", "n_routed_experts"}, 1 << 20);
  if (m.experts == 0) return;
  m.chosen = keys.integer({"num_experts_per_tok", "moe_topk"}, m.experts);
  if (m.chosen == 0) {
    m.chosen = 1;
    m.assumed.push_back("one expert a token (num_experts_per_tok is not said)");
  }
  const auto dense = keys.integer({"intermediate_size_mlp", "intermediate_size"});
  m.expert_ffn = keys.integer({"moe_intermediate_size"});
  if (m.expert_ffn == 0) m.expert_ffn = keys.integer({"intermediate_size"});
  const auto shared = keys.integer({"n_shared_experts", "num_shared_experts"}, 1 << 20);
  m.shared_ffn =
      shared > 0 ? shared * m.expert_ffn : keys.integer({"shared_expert_intermediate_size"});
  if (type == "llama4_text" && m.shared_ffn == 0) m.shared_ffn = m.expert_ffn;

  m.fp32_router = type.rfind("deepseek", 0) == 0;
  m.assumed.push_back(
      "the experts as one grouped product (experts: loop or batched for the others)");

  const auto first_dense = keys.integer({"first_k_dense_replace"});
  const auto step = std::max<std::int64_t>(
      keys.integer({"decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step"}), 1);
  std::set<std::int64_t> named;
  if (const auto* list = keys.find({"mlp_only_layers"}); list != nullptr) {
    for (const auto& n : *list) {
      if (n.is_number_integer()) named.insert(n.get<std::int64_t>());
    }
  }
  for (std::size_t n = 0; n < layers.size(); ++n) {
    const auto number = static_cast<std::int64_t>(n);
    layers[n].moe = number >= first_dense && (number + 1) % step == 0 && named.count(number) == 0;
    if (type.rfind("deepseek", 0) == 0) layers[n].moe = number >= first_dense && number % step == 0;
    layers[n].ffn = layers[n].moe ? 0 : dense;
  }
}

}  // namespace

Result<Described> read_huggingface(const std::string& text, const std::string& name) {
  auto parsed = parse_json(text, name);
  if (!parsed.ok()) return Error{parsed.error().text};
  const Json* json = &parsed.value();
  Described d;
  auto& m = d.model;
  if (const auto inner = json->find("text_config"); inner != json->end() && inner->is_object()) {
    json = &*inner;
    m.assumed.push_back("the language model alone (text_config): no images, no sound");
  }
  Keys keys(*json, name);
  const auto type = keys.word({"model_type"});
  m.implementation = Implementation::kHuggingFace;
  m.name = type.empty() ? "unnamed" : type;

  const auto layers = keys.integer({"num_hidden_layers", "n_layer", "num_layers"}, kMostLayers);
  m.hidden = keys.integer({"hidden_size", "n_embd", "d_model"});
  m.heads = keys.integer({"num_attention_heads", "n_head", "num_heads"}, 1 << 20);
  if (!keys.error().empty()) return Error{keys.error()};
  for (const auto& [value, what] : {std::pair{layers, "num_hidden_layers (or n_layer)"},
                                    {m.hidden, "hidden_size (or n_embd)"},
                                    {m.heads, "num_attention_heads (or n_head)"}}) {
    if (value == 0) return Error{name + ": is no model: has no " + what};
  }
  const auto* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                    [&](const Family& f) { return type == f.type; });
  const bool known = family != std::end(kFamilies);
  const auto act = keys.word({"hidden_act", "activation_function", "hidden_activation"});
  if (known) {
    m.norm = family->norm, m.norms = family->norms;
    m.fused_qkv = family->fused_qkv, m.qk_norm = family->qk_norm;
    m.parallel_block = family->parallel_block;
    m.attention_bias = family->attention_bias, m.mlp_bias = family->mlp_bias;
  } else {
    const bool layer_norm = keys.find({"layer_norm_epsilon", "layer_norm_eps"}) != nullptr &&
                            keys.find({"rms_norm_eps"}) == nullptr;
    m.norm = layer_norm ? Norm::kLayer : Norm::kRms;
    m.assumed.push_back("model_type \"" + type.substr(0, 40) + "\" is not known: taken as a " +
                        (layer_norm ? "LayerNorm" : "RMSNorm") + " transformer by its common keys");
  }
  const bool gated =
      known ? family->gated : act != "gelu" && act.rfind("gelu_", 0) != 0 && act != "relu";
  m.activation = gated                                     ? Activation::kGated
                 : act == "gelu_new" || act == "gelu_fast" ? Activation::kGeluTanh
                                                           : Activation::kGelu;
  if (!known)
    m.assumed.push_back(gated ? "a gated MLP of three matrices" : "an MLP of two matrices");
  m.parallel_block = keys.flag("use_parallel_residual", m.parallel_block);
  m.attention_bias = keys.flag("attention_bias", m.attention_bias);
  if (type == "llama4_text") m.qk_norm = keys.flag("use_qk_norm", true);

  m.kv_heads = keys.integer({"num_key_value_heads"}, 1 << 20);
  if (m.kv_heads == 0) m.kv_heads = m.heads;
  m.head_size = keys.integer({"head_dim"});
  m.kv_rank = keys.integer({"kv_lora_rank"});
  if (m.kv_rank > 0) {
    m.query_rank = keys.integer({"q_lora_rank"});
    m.rope_size = keys.integer({"qk_rope_head_dim"});
    m.nope_size = keys.integer({"qk_nope_head_dim"});
    m.value_size = keys.integer({"v_head_dim"});
    m.head_size = m.rope_size + m.nope_size;
    if (keys.error().empty() && (m.head_size == 0 || m.value_size == 0)) {
      return Error{name +
                   ": kv_lora_rank: needs qk_rope_head_dim, qk_nope_head_dim and v_head_dim"};
    }
  } else if (m.head_size == 0) {
    if (m.hidden % m.heads != 0) {
      return Error{name + ": num_attention_heads: " + std::to_string(m.heads) +
                   " does not divide hidden_size, " + std::to_string(m.hidden)};
    }
    m.head_size = m.hidden / m.heads;
  }
  if (m.heads % m.kv_heads != 0) {
    return Error{name + ": num_key_value_heads: " + std::to_string(m.kv_heads) +
                 " does not divide num_attention_heads, " + std::to_string(m.heads)};
  }

  auto ffn = keys.integer({"intermediate_size_mlp", "intermediate_size", "n_inner", "ffn_dim"});
  if (ffn == 0) {
    ffn = 4 * m.hidden;
    if (type != "gpt2")
      m.assumed.push_back("an MLP of 4 x hidden_size (intermediate_size is not said)");
  }
  m.layers.assign(static_cast<std::size_t>(layers), Layer{false, ffn});
  read_experts(keys, type, m, m.layers);
  m.mtp_layers = keys.integer({"num_nextn_predict_layers"}, 64);
  m.vocabulary = keys.integer({"vocab_size"});
  if (m.vocabulary == 0)
    m.assumed.push_back("no vocabulary (vocab_size is not said): no embedding, no logits");
  if (known && family->learned_positions) m.positions = keys.integer({"n_positions", "n_ctx"});
  m.tied_embeddings = keys.flag("tie_word_embeddings", known && family->tied);
  m.sequence = keys.integer({"max_position_embeddings", "n_positions", "n_ctx"});
  m.dropout = keys.fraction({"resid_pdrop", "hidden_dropout"}, 0);
  m.attention_dropout = keys.fraction({"attn_pdrop", "attention_dropout"}, 0);

  const auto dtype = keys.word({"torch_dtype", "dtype"});
  const bool wide = dtype == "float32";
  m.act_bytes = m.gemm_bytes = wide ? 4 : 2;
  m.weight_bytes = wide ? 4 : 2;
  if (dtype.empty()) m.assumed.push_back("bf16 (the file names no type)");
  if (keys.find({"quantization_config"}) != nullptr) {
    m.assumed.push_back("training in bf16: quantization_config was not looked at");
  }
  if (m.attention == Attention::kFlash) {
    m.assumed.push_back("attention by SDPA or flash (attention: eager for the other)");
  }
  if (!keys.error().empty()) return Error{keys.error()};
  return d;
}

}  // namespace recoup::models
