// See recoup_ggml.h. The rewrite needs nothing but ggml's public graph functions; inside ggml's
// tree it also keeps the graph's use counts exact, so that backends fuse what they could fuse
// anyway.
#include "recoup_ggml.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "recoup/host.h"
#include "recoup_ggml_rewrite.h"

namespace {

using Tensor = ggml_tensor;

// A plugin started for one kind of model and its decisions; it lives on, as graphs come and go.
struct Model {
  recoup_loaded recoup{};
  std::vector<recoup_layer_v1> layers;
};

// The options of the process and what was started from them.
struct State {
  std::string config_path, config_yaml, plugin;
  recoup_ggml_namer namer = recoup_ggml_llama_names;
  void* namer_user = nullptr;
  recoup_log_fn log = nullptr;
  void* log_user = nullptr;
  std::map<std::vector<bool>, Model> models;  // by which layers have experts
  std::set<std::string> said;                 // warnings, each once

  ~State() {
    for (auto& model : models) recoup_unload(&model.second.recoup);
  }

  recoup_host_v1 host(int64_t num_layers, int64_t num_mlps) const {
    recoup_host_v1 host{};
    host.name = "ggml";
    host.config_path = config_path.empty() ? nullptr : config_path.c_str();
    host.config_yaml = config_yaml.empty() ? nullptr : config_yaml.c_str();
    host.num_layers = host.stage_num_layers = num_layers;
    host.num_mlps = num_mlps;
    host.modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION;
    host.capabilities = RECOUP_CAN_STAGES | RECOUP_CAN_COUNT_MLPS;  // one stage, all layers seen
    host.log = log;
    host.log_user = log_user;
    return host;
  }

  // The plugin's decisions, asked once; null with a sentence in `error`.
  const std::vector<recoup_layer_v1>* decide(const std::vector<bool>& is_moe, char* error,
                                             size_t error_size) {
    const auto known = models.find(is_moe);
    if (known != models.end()) return &known->second.layers;
    const auto dense = std::count(is_moe.begin(), is_moe.end(), false);
    auto described = host(static_cast<int64_t>(is_moe.size()), dense);
    Model model;
    const char* library = plugin.empty() ? nullptr : plugin.c_str();
    if (recoup_load(&model.recoup, library, &described, error, error_size) != RECOUP_OK) {
      return nullptr;
    }
    int64_t mlps = 0;
    for (size_t l = 0; l < is_moe.size(); ++l) {
      recoup_layer_v1 layer{};
      layer.layer_number = static_cast<int64_t>(l) + 1;
      layer.is_moe = is_moe[l];
      layer.mlp_number = is_moe[l] ? 0 : ++mlps;
      if (recoup_ask(&model.recoup, &layer, error, error_size) != RECOUP_OK) {
        recoup_unload(&model.recoup);
        return nullptr;
      }
      model.layers.push_back(layer);
    }
    return &models.emplace(is_moe, std::move(model)).first->second.layers;
  }

  void warn(const std::string& line) {
    if (!said.insert(line).second) return;
    if (log != nullptr) {
      log(log_user, RECOUP_LOG_WARNING, line.c_str());
    } else {
      std::fprintf(stderr, "WARNING: %s\n", line.c_str());
    }
  }
};

std::mutex mutex;
std::unique_ptr<State> state = std::make_unique<State>();

bool starts_with(const char* text, const char* with) {
  return std::strncmp(text, with, std::strlen(with)) == 0;
}

// Decides what is dropped, by the tensors' names and the plugin; false with a sentence in
// `error`.
bool choose(ggml_cgraph* graph, int n_forward, std::unordered_set<const Tensor*>* dropped,
            char* error, size_t error_size) {
  struct Named {
    Tensor* tensor;
    recoup_ggml_role role;
    int64_t layer;
  };
  std::vector<Named> named;
  std::set<int64_t> experts;
  int64_t num_layers = 0;
  const auto look = [&](Tensor* t, bool is_node) {
    int64_t layer = -1;
    const auto role = state->namer(state->namer_user, t, &layer);
    if (role == RECOUP_GGML_OTHER || layer < 0) return;
    num_layers = std::max(num_layers, layer + 1);
    if (role == RECOUP_GGML_EXPERTS) experts.insert(layer);
    if (role != RECOUP_GGML_EXPERTS && is_node) named.push_back({t, role, layer});
  };
  for (int i = 0; i < n_forward; ++i) {
    look(ggml_graph_node(graph, i), true);
    for (Tensor* source : ggml_graph_node(graph, i)->src) {
      if (source != nullptr && source->op == GGML_OP_NONE) look(source, false);
    }
  }
  if (num_layers == 0) {
    const auto host = state->host(0, 0);
    if (!recoup_is_configured(&host)) return true;
    state->warn(
        "recoup: no tensor of this graph has a name such as ffn_up-0, so nothing is recomputed; "
        "name them, or give recoup_ggml_configure() a namer");
    return true;
  }
  std::vector<bool> is_moe(num_layers);
  for (const auto layer : experts) is_moe[layer] = true;
  const auto* decisions = state->decide(is_moe, error, error_size);
  if (decisions == nullptr) return false;
  for (const auto& [tensor, role, layer] : named) {
    const auto& decision = (*decisions)[layer];
    if (!decision.recompute_mlp) continue;
    if (decision.mlp_activation_only && role == RECOUP_GGML_FC1) continue;
    if (tensor->data != nullptr) {
      std::snprintf(error, error_size,
                    "recoup: %s has its memory already; rewrite the graph before it is "
                    "allocated, in a context with no_alloc",
                    tensor->name);
      return false;
    }
    if (!recoup_ggml::droppable(tensor)) {
      state->warn(std::string("recoup: ") + tensor->name +
                  " is an output of the graph (or is not computed) and stays");
      continue;
    }
    dropped->insert(tensor);
  }
  return true;
}

}  // namespace

recoup_ggml_role recoup_ggml_llama_names(void*, const ggml_tensor* tensor, int64_t* layer) {
  const char* name = tensor->name;
  if (starts_with(name, "blk.")) {  // a weight
    char* end = nullptr;
    *layer = std::strtoll(name + 4, &end, 10);
    return std::strstr(end, "_exps") != nullptr ? RECOUP_GGML_EXPERTS : RECOUP_GGML_OTHER;
  }
  const char* dash = std::strrchr(name, '-');
  if (!starts_with(name, "ffn_") || dash == nullptr || dash[1] == '\0' ||
      dash[1 + std::strspn(dash + 1, "0123456789")] != '\0') {
    return RECOUP_GGML_OTHER;
  }
  *layer = std::strtoll(dash + 1, nullptr, 10);
  const std::string base(name + 4, dash);
  if (starts_with(base.c_str(), "moe_") || base.find("_exps") != std::string::npos) {
    return RECOUP_GGML_EXPERTS;
  }
  for (const char* part :
       {"silu", "gelu", "relu", "sqr", "swiglu", "geglu", "reglu", "situ", "act", "gate_par"}) {
    if (starts_with(base.c_str(), part)) return RECOUP_GGML_ACTIVATION;
  }
  for (const char* part :
       {"up", "up_b", "up_s", "up_clamped", "gate", "gate_b", "gate_s", "gate_clamped"}) {
    if (base == part) return RECOUP_GGML_FC1;
  }
  return RECOUP_GGML_OTHER;
}

void recoup_ggml_configure(const recoup_ggml_options* options) {
  const std::lock_guard<std::mutex> lock(mutex);
  state = std::make_unique<State>();
  if (options == nullptr) return;
  const auto text = [](const char* value) { return std::string(value != nullptr ? value : ""); };
  state->config_path = text(options->config_path);
  state->config_yaml = text(options->config_yaml);
  state->plugin = text(options->plugin);
  if (options->namer != nullptr) state->namer = options->namer;
  state->namer_user = options->namer_user;
  state->log = options->log;
  state->log_user = options->log_user;
}

int recoup_ggml_rewrite(ggml_context* ctx, ggml_cgraph* graph, int n_forward, char* error,
                        size_t error_size) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (n_forward < 1 || n_forward >= ggml_graph_n_nodes(graph)) {
    std::snprintf(error, error_size,
                  "recoup: a forward of %d nodes in a graph of %d; rewrite it after "
                  "ggml_build_backward_expand()",
                  n_forward, ggml_graph_n_nodes(graph));
    return -1;
  }
  std::unordered_set<const Tensor*> dropped;
  if (!choose(graph, n_forward, &dropped, error, error_size)) return -1;
  return recoup_ggml::rewrite(ctx, graph, n_forward, std::move(dropped), error, error_size);
}

void recoup_ggml_recompute(ggml_context* ctx, ggml_cgraph* graph, int n_forward) {
  char error[1024] = "";
  if (recoup_ggml_rewrite(ctx, graph, n_forward, error, sizeof(error)) < 0) {
    GGML_ABORT("%s", error);
  }
}
