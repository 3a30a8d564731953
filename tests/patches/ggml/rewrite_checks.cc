// What recoup_ggml_rewrite() does to graphs of ggml's own making, and what it refuses. Compiled
// with ggml's internal header in reach (by hand), it checks the graphs' use counts as well.
//   rewrite_checks librecoup_policy.so
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "ggml.h"
#include "recoup_ggml.h"
#if __has_include("ggml-impl.h")
#include "ggml-impl.h"
#define COUNTED
#endif

#define CHECK(condition)                                                           \
  if (!(condition)) {                                                              \
    std::printf("failed: %s (%s), line %d\n", #condition, what.c_str(), __LINE__); \
    std::exit(1);                                                                  \
  }

namespace {

std::string what = "start", plugin, yaml;
std::vector<std::string> lines;

constexpr char kAll[] = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";

void configure(const std::string& text, recoup_ggml_namer namer = nullptr) {
  yaml = text;
  lines.clear();
  recoup_ggml_options options{};
  options.config_yaml = yaml.empty() ? nullptr : yaml.c_str();
  options.plugin = plugin.c_str();
  options.namer = namer;
  options.log = [](void*, recoup_log_level level, const char* line) {
    lines.push_back((level == RECOUP_LOG_WARNING ? "WARNING " : "") + std::string(line));
  };
  recoup_ggml_configure(&options);
}

bool said(const std::string& part) {
  for (const auto& line : lines) {
    if (line.find(part) != std::string::npos) return true;
  }
  return false;
}

struct Graph {
  ggml_context* ctx;
  ggml_cgraph* graph;
  int n_forward, n;
  char error[1024] = "";

  using Mlp = std::function<ggml_tensor*(Graph&, int layer, ggml_tensor* x)>;

  // `layers` times x + mlp(x), and the sum as loss.
  Graph(int layers, const Mlp& mlp, int size = 512, bool no_alloc = true, int tensors = 1024) {
    ctx = ggml_init({size_t(tensors) * ggml_tensor_overhead() +
                         ggml_graph_overhead_custom(size, true) + (no_alloc ? 0 : 1 << 20),
                     nullptr, no_alloc});
    graph = ggml_new_graph_custom(ctx, size, true);
    ggml_tensor* x = weight("input", 8, 4);
    for (int l = 0; l < layers; ++l) x = ggml_add(ctx, x, mlp(*this, l, x));
    ggml_tensor* loss = ggml_sum(ctx, x);
    ggml_set_loss(loss);
    ggml_build_forward_expand(graph, loss);
    n_forward = ggml_graph_n_nodes(graph);
    ggml_build_backward_expand(ctx, graph, nullptr);
    n = ggml_graph_n_nodes(graph);
  }
  ~Graph() { ggml_free(ctx); }

  ggml_tensor* weight(const std::string& name, int columns, int rows) {
    ggml_tensor* w = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, columns, rows);
    ggml_set_param(w);
    ggml_set_name(w, name.c_str());
    return w;
  }
  ggml_tensor* named(ggml_tensor* t, const char* name, int layer) {
    ggml_format_name(t, "%s-%d", name, layer);
    return t;
  }
  int rewrite() { return recoup_ggml_rewrite(ctx, graph, n_forward, error, sizeof(error)); }

  int index(const ggml_tensor* t) const {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
      if (ggml_graph_node(graph, i) == t) return i;
    }
    return -1;
  }
  std::vector<std::string> clones() const {
    std::vector<std::string> names;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
      const ggml_tensor* t = ggml_graph_node(graph, i);
      if (std::strncmp(t->name, "recompute ", 10) == 0) names.push_back(t->name + 10);
    }
    return names;
  }

  // What holds for every graph after a rewrite: sources come first, each node is there once, all
  // are computed, and no node of the backward reads what was dropped.
  void sound(int count) const {
#ifdef COUNTED
    std::map<const ggml_tensor*, int> uses;
    for (int i = 0; i < n + count; ++i) {
      for (const ggml_tensor* source : ggml_graph_node(graph, i)->src) ++uses[source];
    }
    for (int i = 0; i < n + count; ++i) {
      CHECK(ggml_node_get_use_count(graph, i) == uses[ggml_graph_node(graph, i)]);
    }
#endif
    CHECK(ggml_graph_n_nodes(graph) == n + count);
    CHECK(int(clones().size()) == count);
    std::set<const ggml_tensor*> seen;
    std::set<std::string> cloned;
    for (const auto& name : clones()) cloned.insert(name);
    for (int i = 0; i < n + count; ++i) {
      const ggml_tensor* t = ggml_graph_node(graph, i);
      CHECK(seen.insert(t).second);
      CHECK(i < n_forward || (t->flags & GGML_TENSOR_FLAG_COMPUTE) != 0);
      for (const ggml_tensor* source : t->src) {
        if (source == nullptr) continue;
        CHECK(source->op == GGML_OP_NONE || index(source) < 0 || seen.count(source) == 1);
        CHECK(i < n_forward || cloned.count(source->name) == 0);
      }
      CHECK(t->view_src == nullptr || i < n_forward || cloned.count(t->view_src->name) == 0);
    }
  }
};

ggml_tensor* plain(Graph& g, int l, ggml_tensor* x) {
  ggml_tensor* up = g.named(ggml_mul_mat(g.ctx, g.weight("up", 8, 16), x), "ffn_up", l);
  ggml_tensor* act = g.named(ggml_silu(g.ctx, up), "ffn_silu", l);
  return g.named(ggml_mul_mat(g.ctx, g.weight("down", 16, 8), act), "ffn_down", l);
}

ggml_tensor* gated(Graph& g, int l, ggml_tensor* x) {
  ggml_tensor* up = g.named(ggml_mul_mat(g.ctx, g.weight("up", 8, 16), x), "ffn_up", l);
  ggml_tensor* gate = g.named(ggml_mul_mat(g.ctx, g.weight("gate", 8, 16), x), "ffn_gate", l);
  ggml_tensor* act = g.named(ggml_swiglu_split(g.ctx, gate, up), "ffn_swiglu", l);
  return ggml_mul_mat(g.ctx, g.weight("down", 16, 8), act);
}

// A LoRA under fc1, whose parts nobody names, a bias, and a view of the activation.
ggml_tensor* with_lora(Graph& g, int l, ggml_tensor* x) {
  ggml_tensor* base = ggml_mul_mat(g.ctx, ggml_new_tensor_2d(g.ctx, GGML_TYPE_F32, 8, 16), x);
  ggml_tensor* lora =
      ggml_mul_mat(g.ctx, g.weight("b", 2, 16), ggml_mul_mat(g.ctx, g.weight("a", 8, 2), x));
  ggml_tensor* up = g.named(ggml_add(g.ctx, base, ggml_scale(g.ctx, lora, 0.5f)), "ffn_up", l);
  up = g.named(ggml_add(g.ctx, up, g.weight("bias", 16, 1)), "ffn_up_b", l);
  ggml_tensor* act = g.named(ggml_relu(g.ctx, up), "ffn_relu", l);
  act = ggml_reshape_2d(g.ctx, act, 16, 4);
  return ggml_mul_mat(g.ctx, g.weight("down", 16, 8), act);
}

// A mixture of experts as llama.cpp names it, whose shared expert looks like an MLP.
ggml_tensor* experts(Graph& g, int l, ggml_tensor* x) {
  g.named(ggml_scale(g.ctx, x, 1.0f), "ffn_moe_logits", l);
  return ggml_add(g.ctx, g.named(ggml_scale(g.ctx, x, 1.0f), "ffn_moe_out", l), plain(g, l, x));
}

using Names = std::vector<std::string>;

void chosen_layers() {
  for (int n = 1; n <= 4; ++n) {
    what = "N = " + std::to_string(n);
    configure(std::string(kAll) + "recompute_mlp_num_layers: " + std::to_string(n) + "\n");
    Graph g(4, plain);
    CHECK(g.rewrite() == 2 * n);
    g.sound(2 * n);
    CHECK(said("Layer " + std::to_string(n) + ": recompute_mlp=True"));
    CHECK(n == 4 || said("Layer " + std::to_string(n + 1) + ": recompute_mlp=False"));
    const auto before = lines.size();
    CHECK(g.rewrite() == 0);  // nothing reads the originals any more
    CHECK(lines.size() == before);
  }
  what = "gated, layers 2 and 4";
  configure(std::string(kAll) + "recompute_mlp_layers: \"2,4\"\n");
  Graph g(4, gated);
  CHECK(g.rewrite() == 6);
  g.sound(6);
  CHECK((g.clones() == Names{"ffn_up-3", "ffn_gate-3", "ffn_swiglu-3", "ffn_up-1", "ffn_gate-1",
                             "ffn_swiglu-1"} ||
         g.clones() == Names{"ffn_gate-3", "ffn_up-3", "ffn_swiglu-3", "ffn_gate-1", "ffn_up-1",
                             "ffn_swiglu-1"}));
}

void nothing_configured() {
  what = "no options";
  configure("");
  Graph g(2, plain);
  CHECK(g.rewrite() == 0 && lines.empty());
  g.sound(0);
}

void gradients_keep_their_places() {
  what = "gradients";
  configure(kAll);
  Graph g(3, gated);
  std::map<ggml_tensor*, ggml_tensor*> gradients;
  for (int i = 0; i < g.n; ++i) {
    ggml_tensor* node = ggml_graph_node(g.graph, i);
    gradients[node] = ggml_graph_get_grad(g.graph, node);
  }
  CHECK(g.rewrite() == 9);
  for (const auto& [node, gradient] : gradients) {
    CHECK(ggml_graph_get_grad(g.graph, node) == gradient);
  }
  ggml_cgraph* copy = ggml_graph_dup(g.ctx, g.graph, true);  // what ggml_opt_build() does next
  CHECK(ggml_graph_n_nodes(copy) == g.n + 9);
}

void unnamed_parts_and_views() {
  what = "LoRA, bias, view";
  configure(kAll);
  Graph g(2, with_lora);
  const int count = g.rewrite();
  g.sound(count);
  bool view = false, sum = false;
  for (const auto& name : g.clones()) {
    view |= name.find("(reshaped)") != std::string::npos;
    sum |= name == "ffn_up-1";
    CHECK(name.find("ffn_down") == std::string::npos);
  }
  CHECK(view && sum);
  // The base GEMM is read by the clone of the sum alone: a clone, too, or it would be kept.
  for (int i = g.n_forward; i < ggml_graph_n_nodes(g.graph); ++i) {
    for (const ggml_tensor* source : ggml_graph_node(g.graph, i)->src) {
      CHECK(source == nullptr || source->op != GGML_OP_MUL_MAT || g.index(source) >= g.n_forward ||
            source->ne[0] != 16);
    }
  }
}

void activation_level() {
  what = "activation level";
  configure(std::string(kAll) + "mlp_recompute_level: activation\n");
  Graph g(2, gated);
  CHECK(g.rewrite() == 2);
  g.sound(2);
  CHECK((g.clones() == Names{"ffn_swiglu-1", "ffn_swiglu-0"}));
}

void experts_are_no_mlp() {
  what = "experts";
  configure(kAll);
  Graph g(2, [](Graph& g, int l, ggml_tensor* x) {
    return l == 0 ? experts(g, l, x) : plain(g, l, x);
  });
  CHECK(g.rewrite() == 2);
  CHECK((g.clones() == Names{"ffn_up-1", "ffn_silu-1"}));
  CHECK(said("Layer 1: recompute_mlp=False") && said("Layer 2: recompute_mlp=True"));
}

void other_names() {
  what = "other names";
  configure(kAll, [](void*, const ggml_tensor* t, int64_t* layer) {
    *layer = t->name[1] - '0';
    return t->name[0] == 'h'                         ? RECOUP_GGML_FC1
           : t->name[0] == 'a' && t->name[2] == '\0' ? RECOUP_GGML_ACTIVATION
                                                     : RECOUP_GGML_OTHER;
  });
  Graph g(2, [](Graph& g, int l, ggml_tensor* x) {
    ggml_tensor* h = ggml_mul_mat(g.ctx, g.weight("w", 8, 16), x);
    ggml_format_name(h, "h%d", l);
    ggml_tensor* a = ggml_silu(g.ctx, h);
    ggml_format_name(a, "a%d", l);
    return ggml_mul_mat(g.ctx, g.weight("v", 16, 8), a);
  });
  CHECK(g.rewrite() == 4);
  g.sound(4);

  what = "no names";
  configure(kAll);
  Graph unnamed(2, [](Graph& g, int, ggml_tensor* x) {
    return ggml_mul_mat(g.ctx, g.weight("v", 16, 8),
                        ggml_silu(g.ctx, ggml_mul_mat(g.ctx, g.weight("w", 8, 16), x)));
  });
  CHECK(unnamed.rewrite() == 0 &&
        said("WARNING recoup: no tensor of this graph has a name such as ffn_up-0"));
}

void an_output_stays() {
  what = "output";
  configure(kAll);
  Graph g(1, [](Graph& g, int l, ggml_tensor* x) {
    ggml_tensor* out = plain(g, l, x);
    ggml_set_output(out->src[1]);  // the activation
    return out;
  });
  CHECK(g.rewrite() == 1);
  CHECK((g.clones() == Names{"ffn_up-0"}));
  CHECK(said("ffn_silu-0 is an output of the graph"));
}

void refuse(Graph& g, const std::string& part) {
  CHECK(g.rewrite() == -1);
  if (std::string(g.error).find(part) == std::string::npos) {
    std::printf("%s\n", g.error);
    CHECK(false);
  }
  g.sound(0);
}

void what_is_refused() {
  configure(kAll);
  {
    what = "no backward";
    Graph g(1, plain);
    g.n_forward = g.n;
    refuse(g, "after ggml_build_backward_expand()");
    g.n_forward = 0;
    CHECK(g.rewrite() == -1);
  }
  {
    what = "memory already";
    Graph g(1, plain, 512, /*no_alloc=*/false);
    refuse(g, "has its memory already");
  }
  {
    what = "small graph";
    Graph whole(4, plain);
    Graph g(4, plain, whole.n + 7);
    refuse(g, "8 operations are to run again, and the graph has room for 7 more nodes");
  }
  {
    what = "small context";
    Graph g(4, plain);
    while (ggml_get_mem_size(g.ctx) - ggml_used_mem(g.ctx) >= 8 * ggml_tensor_overhead()) {
      ggml_new_tensor_1d(g.ctx, GGML_TYPE_F32, 1);
    }
    refuse(g, "make its mem_size larger by");
  }
  const std::map<std::string, std::string> bad = {
      {"recompute_mlp_num_layers: 0\n", "recompute_mlp_num_layers"},
      {"recompute_mlp_num_layers: twelve\n", "recompute_mlp_num_layers"},
      {"recompute_mlp_num_layers: -1\n", "recompute_mlp_num_layers"},
      {"distribute_saved_activations: maybe\n", "distribute_saved_activations"},
      {"distribute_saved_activations: true\n", "distribute_saved_activations"},
  };
  for (const auto& [line, part] : bad) {
    what = line;
    configure(kAll + line);
    Graph g(2, plain);
    refuse(g, part);
  }
  what = "core_attn";
  configure("recompute_granularity: selective\nrecompute_modules: [core_attn]\n");
  Graph g(2, plain);
  refuse(g, "core_attn");

  what = "full";
  configure("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 1\n");
  Graph full(2, plain);
  refuse(full, "RECOUP_CAN_FULL");

  what = "N > L";
  configure(std::string(kAll) + "recompute_mlp_num_layers: 9\n");
  Graph more(2, plain);
  CHECK(more.rewrite() == 4 && said("WARNING") && said("9"));
}

}  // namespace

int main(int, char** argv) {
  plugin = argv[1];
  chosen_layers();
  nothing_configured();
  gradients_keep_their_places();
  unnamed_parts_and_views();
  activation_level();
  experts_are_no_mlp();
  other_names();
  an_output_stays();
  what_is_refused();
  recoup_ggml_configure(nullptr);
  std::puts("all right");
}
