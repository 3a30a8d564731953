// Megatron-LM's arguments: pasted from a script, or as YAML.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "recoup/models/model.h"
#include "values.h"

namespace recoup::models {
namespace {

// "--key value --flag": each key with its value, empty for a flag.
Result<std::map<std::string, std::string>> arguments_of(const std::string& text,
                                                        const std::string& name) {
  std::map<std::string, std::string> arguments;
  std::string key, word;
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {  // comments, quotes, line ends and array brackets
    if (text[i] == '#' && (i == 0 || text[i - 1] == ' ' || text[i - 1] == '\n')) {
      while (i < text.size() && text[i] != '\n') ++i;
    }
    const char c = i < text.size() ? text[i] : ' ';
    plain += c == '\\' || c == '"' || c == '\'' || c == '(' || c == ')' ? ' ' : c;
  }
  std::istringstream in(plain);
  while (in >> word) {
    if (word.rfind("--", 0) == 0 && word.size() > 2) {
      const auto equal = word.find('=');
      key = word.substr(2, equal == std::string::npos ? equal : equal - 2);
      std::replace(key.begin(), key.end(), '_', '-');
      if (arguments.count(key) > 0) return Error{name + ": --" + key + ": is there twice"};
      arguments[key] = equal == std::string::npos ? "" : word.substr(equal + 1);
    } else if (!key.empty()) {
      auto& value = arguments[key];
      if (value.empty()) value = word;
    }
  }
  if (arguments.count("num-layers") == 0) {
    return Error{name + ": is no model: has no --num-layers among Megatron-LM's arguments"};
  }
  return arguments;
}

class Arguments {
 public:
  Arguments(std::map<std::string, std::string> all, std::string name)
      : all_(std::move(all)), name_(std::move(name)) {}

  bool has(const std::string& key) {
    used_.insert(key);
    return all_.count(key) > 0;
  }
  bool flag(const std::string& key) {
    return has(key) && all_[key] != "False" && all_[key] != "false";
  }
  std::string word(const std::string& key) { return has(key) ? all_[key] : ""; }
  std::int64_t integer(const std::string& key, std::int64_t fallback, std::int64_t least = 1,
                       std::int64_t most = kMostSize) {
    if (!has(key)) return fallback;
    const auto n = to_integer(all_[key], least, most);
    if (!n.ok()) fail("--" + key + ": " + n.error().text);
    return n.ok() ? n.value() : fallback;
  }
  double fraction(const std::string& key, double fallback) {
    if (!has(key)) return fallback;
    const auto n = to_number(all_[key], 0, 0.999999);
    if (!n.ok()) fail("--" + key + ": " + n.error().text);
    return n.ok() ? n.value() : fallback;
  }
  void fail(const std::string& what) {
    if (error_.empty()) error_ = name_ + ": " + what;
  }
  const std::string& error() const { return error_; }
  std::string unused() const {
    std::string list;
    for (const auto& [key, value] : all_) {
      if (used_.count(key) == 0) list += (list.empty() ? "--" : ", --") + key;
    }
    return list;
  }

 private:
  std::map<std::string, std::string> all_;
  std::set<std::string> used_;
  std::string name_, error_;
};

// "1", "2", or "([0]*3+[1]*58)": which layers are MoE.
bool read_frequency(std::string text, std::vector<Layer>& layers) {
  std::vector<bool> moe;
  text.erase(std::remove_if(text.begin(), text.end(),
                            [](char c) { return c == ' ' || c == '(' || c == ')'; }),
             text.end());
  if (const auto n = to_integer(text, 1, kMostLayers); n.ok()) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      layers[i].moe = static_cast<std::int64_t>(i) % n.value() == 0;
    }
    return true;
  }
  std::istringstream in(text);
  std::string term;
  while (std::getline(in, term, '+')) {
    const auto close = term.find(']');
    if (term.empty() || term[0] != '[' || close == std::string::npos) return false;
    std::vector<bool> once;
    for (const char c : term.substr(1, close - 1)) {
      if (c == '0' || c == '1') {
        once.push_back(c == '1');
      } else if (c != ',') {
        return false;
      }
    }
    std::int64_t times = 1;
    if (close + 1 < term.size()) {
      if (term[close + 1] != '*') return false;
      const auto n = to_integer(term.substr(close + 2), 1, kMostLayers);
      if (!n.ok()) return false;
      times = n.value();
    }
    for (std::int64_t k = 0; k < times; ++k) moe.insert(moe.end(), once.begin(), once.end());
  }
  if (moe.size() != layers.size()) return false;
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i].moe = moe[i];
  return true;
}

}  // namespace

Result<Described> read_megatron(const std::string& text, const std::string& name) {
  auto parsed = arguments_of(text, name);
  if (!parsed.ok()) return Error{parsed.error().text};
  Arguments a(parsed.value(), name);
  Described d;
  auto& m = d.model;
  auto& p = d.parallel;
  m.implementation = Implementation::kMegatron;
  m.name = "Megatron-LM";
  const auto layers = a.integer("num-layers", 0, 1, kMostLayers);
  m.hidden = a.integer("hidden-size", 0);
  m.heads = a.integer("num-attention-heads", 0, 1, 1 << 20);
  if (!a.error().empty()) return Error{a.error()};
  if (m.hidden == 0 || m.heads == 0) {
    return Error{name +
                 ": is no model: needs --num-layers, --hidden-size and --num-attention-heads"};
  }
  m.head_size = a.integer("kv-channels", m.hidden / m.heads);
  m.kv_heads = a.integer("num-query-groups", m.heads, 1, 1 << 20);
  if (!a.flag("group-query-attention")) m.kv_heads = m.heads;
  m.activation = a.flag("swiglu") ? Activation::kGated : Activation::kGelu;
  const auto usual =
      m.activation == Activation::kGated ? (4 * m.hidden * 2 / 3) / 64 * 64 : 4 * m.hidden;
  const auto ffn = a.integer("ffn-hidden-size", usual);
  m.norm = a.word("normalization") == "RMSNorm" ? Norm::kRms : Norm::kLayer;
  m.attention_bias = a.flag("add-qkv-bias") || !a.flag("disable-bias-linear");
  m.mlp_bias = !a.flag("disable-bias-linear");
  m.qk_norm = a.flag("qk-layernorm");
  m.tied_embeddings = !a.flag("untie-embeddings-and-output-weights");
  m.dropout = a.fraction("hidden-dropout", 0.1);
  m.attention_dropout = a.fraction("attention-dropout", 0.1);
  const auto backend = a.word("attention-backend");
  const bool local = a.word("transformer-impl") == "local";
  const bool flash = a.flag("use-flash-attn") || backend == "flash" || backend == "fused" ||
                     (!local && backend != "unfused" && backend != "local");
  m.attention = flash ? Attention::kFlash : Attention::kEager;
  m.vocabulary = a.integer("padded-vocab-size", a.integer("vocab-size", 0));
  if (m.vocabulary == 0) {
    m.assumed.push_back(
        "no vocabulary (neither --vocab-size nor --padded-vocab-size): no embedding, no logits");
  }
  p.sequence = m.sequence = a.integer("seq-length", 0);
  if (a.word("position-embedding-type") == "learned_absolute" ||
      !a.has("position-embedding-type")) {
    m.positions = a.integer("max-position-embeddings", 0);
  }
  if (a.flag("multi-latent-attention")) {
    m.query_rank = a.integer("q-lora-rank", 0);
    m.kv_rank = a.integer("kv-lora-rank", 32);
    m.nope_size = a.integer("qk-head-dim", 128);
    m.rope_size = a.integer("qk-pos-emb-head-dim", 64);
    m.value_size = a.integer("v-head-dim", 128);
    m.head_size = m.nope_size + m.rope_size;
  }

  p.microbatch = a.integer("micro-batch-size", 1);
  p.tensor = a.integer("tensor-model-parallel-size", 1);
  p.pipeline = a.integer("pipeline-model-parallel-size", 1, 1, kMostLayers);
  p.context = a.integer("context-parallel-size", 1);
  p.expert = a.integer("expert-model-parallel-size", 1);
  p.sequence_parallel = a.flag("sequence-parallel");
  p.first_stage = a.integer("decoder-first-pipeline-num-layers", 0, 0, kMostLayers);
  p.last_stage = a.integer("decoder-last-pipeline-num-layers", 0, 0, kMostLayers);
  p.zero = a.flag("use-distributed-optimizer") ? 1 : 0;
  const bool narrow = a.flag("bf16") || a.flag("fp16");
  m.act_bytes = m.gemm_bytes = narrow ? 2 : 4;
  m.weight_bytes = narrow ? 2 : 4;
  if (a.has("fp8-format")) m.gemm_bytes = 1 + 4.0 / 128;
  // Megatron sets it by itself with --bf16.
  p.fp32_gradients = a.flag("accumulate-allreduce-grads-in-fp32") || a.flag("bf16");
  if (const auto world = a.integer("world-size", 0); world > 0) {
    const auto model_parallel = p.tensor * p.pipeline * p.context;
    if (world % model_parallel != 0) {
      return Error{name + ": --world-size: " + std::to_string(world) +
                   " is no multiple of tensor x pipeline x context parallel, " +
                   std::to_string(model_parallel)};
    }
    p.data = world / model_parallel;
  }
  p.data = a.integer("data-parallel-size", p.data);
  if (const auto batch = a.integer("global-batch-size", 0); batch > 0) {
    if (batch % (p.microbatch * p.data) != 0) {
      return Error{name + ": --global-batch-size: " + std::to_string(batch) +
                   " is no multiple of --micro-batch-size x data parallel, " +
                   std::to_string(p.microbatch * p.data)};
    }
    p.microbatches = batch / (p.microbatch * p.data);
  } else {
    p.microbatches = std::max<std::int64_t>(p.pipeline, 1);
    if (p.pipeline > 1)
      m.assumed.push_back("as many microbatches as stages (--global-batch-size is not said)");
  }
  if (const auto chunk = a.integer("num-layers-per-virtual-pipeline-stage", 0); chunk > 0) {
    if (p.pipeline < 2 || layers % (p.pipeline * chunk) != 0) {
      return Error{name + ": --num-layers-per-virtual-pipeline-stage: " + std::to_string(chunk) +
                   " does not divide a stage's layers"};
    }
    p.virtual_stages = layers / p.pipeline / chunk;
    if (p.virtual_stages > 1) p.schedule = "interleaved";
  }

  m.layers.assign(static_cast<std::size_t>(layers), Layer{false, ffn});
  m.experts = a.integer("num-experts", 0, 1, 1 << 20);
  if (m.experts > 0) {
    m.chosen = a.integer("moe-router-topk", 2, 1, m.experts);
    m.expert_ffn = a.integer("moe-ffn-hidden-size", ffn);
    m.shared_ffn = a.integer("moe-shared-expert-intermediate-size", 0);
    const auto frequency = a.word("moe-layer-freq");
    if (!read_frequency(frequency.empty() ? "1" : frequency, m.layers)) {
      return Error{name + ": --moe-layer-freq: \"" + frequency.substr(0, 40) +
                   "\" is no number and no list of as many 0 and 1 as there are layers"};
    }
    for (auto& layer : m.layers) {
      if (layer.moe) layer.ffn = 0;
    }
  }
  m.mtp_layers = a.integer("mtp-num-layers", 0, 0, 64);
  if (m.activation == Activation::kGated) {
    m.assumed.push_back("activation and product in one kernel, which keeps its inputs only");
  }
  if (!flash) m.assumed.push_back("attention without a fused kernel (--transformer-impl local)");
  if (const auto unused = a.unused(); !unused.empty())
    m.assumed.push_back("not looked at: " + unused);
  if (!a.error().empty()) return Error{a.error()};
  return d;
}

}  // namespace recoup::models
