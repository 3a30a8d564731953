// A trainer on ggml in one file: a byte-level language model of L residual MLP blocks, AdamW, no
// attention. It shows the one call by which a ggml program recomputes the MLP of chosen layers in
// backward, recoup_ggml_rewrite(), and prints what that costs and changes: the compute buffer in
// bytes, the losses and a hash of all weights after each step. Losses and hashes are the same for
// every choice of layers.
//
//   ggml_mlp [-l layers] [-t tokens] [-c channels] [-f hidden] [-s steps] [-g] [-b backends]
//            [-n N | -y FILE] [-p librecoup_policy.so]
//
//   -g  gated MLP (SwiGLU)       -b 2  odd layers on a second backend
//   -n  recompute the MLP of the first N layers      -y  recoup's options in a YAML file
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "recoup_ggml.h"

struct Config {
  int layers = 8, tokens = 256, channels = 64, hidden = 256, steps = 4, backends = 1;
  bool gated = false;
};

constexpr int kVocabulary = 128;

struct Block {
  ggml_tensor *norm, *up, *gate, *down;
};

struct Model {
  ggml_tensor *embedding, *head;
  std::vector<Block> blocks;
  std::vector<ggml_tensor*> weights, m, v;  // AdamW's moments
};

ggml_context* context(size_t tensors, size_t graph_nodes = 0) {
  const size_t graph = graph_nodes > 0 ? ggml_graph_overhead_custom(graph_nodes, true) : 0;
  return ggml_init({tensors * ggml_tensor_overhead() + graph, nullptr, /*no_alloc=*/true});
}

Model make_model(ggml_context* ctx, const Config& c) {
  Model model{};
  const auto weight = [&](const std::string& name, int columns, int rows) {
    ggml_tensor* w = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, columns, rows);
    ggml_set_name(w, name.c_str());
    ggml_set_param(w);
    model.weights.push_back(w);
    model.m.push_back(ggml_dup_tensor(ctx, w));
    model.v.push_back(ggml_dup_tensor(ctx, w));
    return w;
  };
  model.embedding = weight("token_embd.weight", c.channels, kVocabulary);
  for (int l = 0; l < c.layers; ++l) {
    const std::string blk = "blk." + std::to_string(l) + ".";
    Block block{};
    block.norm = weight(blk + "ffn_norm.weight", c.channels, 1);
    block.up = weight(blk + "ffn_up.weight", c.channels, c.hidden);
    if (c.gated) block.gate = weight(blk + "ffn_gate.weight", c.channels, c.hidden);
    block.down = weight(blk + "ffn_down.weight", c.hidden, c.channels);
    model.blocks.push_back(block);
  }
  model.head = weight("output.weight", c.channels, kVocabulary);
  return model;
}

// The same start everywhere: no library's random numbers.
void initialize(const Model& model) {
  uint32_t state = 1;
  for (size_t i = 0; i < model.weights.size(); ++i) {
    ggml_tensor* w = model.weights[i];
    std::vector<float> values(ggml_nelements(w), 1.0f);
    if (w->ne[1] > 1) {
      for (float& x : values) {
        state = state * 1664525u + 1013904223u;
        x = ((state >> 8) * (1.0f / 8388608.0f) - 1.0f) / std::sqrt(float(w->ne[0]));
      }
    }
    ggml_backend_tensor_set(w, values.data(), 0, ggml_nbytes(w));
    ggml_backend_tensor_memset(model.m[i], 0, 0, ggml_nbytes(w));
    ggml_backend_tensor_memset(model.v[i], 0, 0, ggml_nbytes(w));
  }
}

// tokens [T] -> logits [vocabulary, T]. Tensors are named as llama.cpp names them, from layer 0.
ggml_tensor* forward(ggml_context* ctx, const Model& model, ggml_tensor* tokens) {
  const auto named = [](ggml_tensor* t, const char* name, int l) {
    ggml_format_name(t, "%s-%d", name, l);
    return t;
  };
  ggml_tensor* x = ggml_get_rows(ctx, model.embedding, tokens);  // [C, T]
  for (int l = 0; l < int(model.blocks.size()); ++l) {
    const Block& block = model.blocks[l];
    ggml_tensor* h = named(ggml_mul(ctx, ggml_rms_norm(ctx, x, 1e-5f), block.norm), "ffn_norm", l);
    ggml_tensor* up = named(ggml_mul_mat(ctx, block.up, h), "ffn_up", l);  // [F, T]
    ggml_tensor* act;
    if (block.gate != nullptr) {
      ggml_tensor* gate = named(ggml_mul_mat(ctx, block.gate, h), "ffn_gate", l);
      act = named(ggml_swiglu_split(ctx, gate, up), "ffn_swiglu", l);
    } else {
      act = named(ggml_silu(ctx, up), "ffn_silu", l);
    }
    x = named(ggml_add(ctx, x, ggml_mul_mat(ctx, block.down, act)), "ffn_out", l);
  }
  return ggml_mul_mat(ctx, model.head, x);
}

uint64_t hash_of(const std::vector<ggml_tensor*>& tensors) {  // FNV-1a over all bytes
  uint64_t hash = 1469598103934665603ull;
  for (ggml_tensor* t : tensors) {
    std::vector<uint8_t> bytes(ggml_nbytes(t));
    ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
    for (uint8_t byte : bytes) hash = (hash ^ byte) * 1099511628211ull;
  }
  return hash;
}

int main(int argc, char** argv) {
  Config c;
  recoup_ggml_options options{};
  std::string yaml;
  for (int option; (option = getopt(argc, argv, "l:t:c:f:s:gb:n:y:p:")) != -1;) {
    switch (option) {
      case 'l':
        c.layers = std::atoi(optarg);
        break;
      case 't':
        c.tokens = std::atoi(optarg);
        break;
      case 'c':
        c.channels = std::atoi(optarg);
        break;
      case 'f':
        c.hidden = std::atoi(optarg);
        break;
      case 's':
        c.steps = std::atoi(optarg);
        break;
      case 'g':
        c.gated = true;
        break;
      case 'b':
        c.backends = std::atoi(optarg);
        break;
      case 'n':
        yaml = std::string("recompute_granularity: selective\nrecompute_modules: [mlp]\n") +
               "recompute_mlp_num_layers: " + optarg + "\n";
        options.config_yaml = yaml.c_str();
        break;
      case 'y':
        options.config_path = optarg;
        break;
      case 'p':
        options.plugin = optarg;
        break;
      default:
        return 2;
    }
  }
  if (optind < argc) {
    std::fprintf(stderr, "error: %s: no option; those there are stand at the top of main.cpp\n",
                 argv[optind]);
    return 2;
  }
  if (c.layers < 1 || c.tokens < 1 || c.channels < 1 || c.hidden < 1 || c.steps < 1 ||
      c.backends < 1 || c.backends > 2) {
    std::fprintf(stderr, "error: sizes and steps are numbers >= 1, backends 1 or 2\n");
    return 2;
  }

  // The forward's graph, the loss, and ggml's backward of it.
  ggml_context* weights_ctx = context(3 * (4 * c.layers + 2) + 4);
  const Model model = make_model(weights_ctx, c);
  ggml_tensor* tokens = ggml_new_tensor_1d(weights_ctx, GGML_TYPE_I32, c.tokens);
  ggml_tensor* labels = ggml_new_tensor_2d(weights_ctx, GGML_TYPE_F32, kVocabulary, c.tokens);
  ggml_tensor* adamw = ggml_new_tensor_1d(weights_ctx, GGML_TYPE_F32, 7);

  const size_t nodes = 256 + 64 * c.layers;
  ggml_context* ctx = context(nodes, nodes);
  ggml_cgraph* graph = ggml_new_graph_custom(ctx, nodes, /*grads=*/true);
  ggml_tensor* loss = ggml_cross_entropy_loss(ctx, forward(ctx, model, tokens), labels);
  ggml_set_loss(loss);
  ggml_set_output(loss);
  ggml_build_forward_expand(graph, loss);
  const int n_forward = ggml_graph_n_nodes(graph);
  // The loss's own gradient, 1, outlives the steps: it has a place beside the weights.
  std::vector<ggml_tensor*> accumulators(n_forward, nullptr);
  accumulators[n_forward - 1] = ggml_new_tensor_1d(weights_ctx, GGML_TYPE_F32, 1);
  ggml_build_backward_expand(ctx, graph, accumulators.data());

  // recoup: the chosen layers' fc1 and activation run again in backward, and are not kept.
  char error[1024];
  recoup_ggml_configure(&options);
  const int again = recoup_ggml_rewrite(ctx, graph, n_forward, error, sizeof(error));
  if (again < 0) {
    std::fprintf(stderr, "error: %s\n", error);
    return 1;
  }

  for (size_t i = 0; i < model.weights.size(); ++i) {
    ggml_tensor* grad = ggml_graph_get_grad(graph, model.weights[i]);
    ggml_build_forward_expand(
        graph, ggml_opt_step_adamw(ctx, model.weights[i], grad, model.m[i], model.v[i], adamw));
  }

  // Memory: weights in a buffer of their own, everything else in the scheduler's.
  std::vector<ggml_backend_t> backends;
  std::vector<ggml_backend_buffer_type_t> memories;
  alignas(64) static char byte[64];
  ggml_backend_buffer_t other = ggml_backend_cpu_buffer_from_ptr(byte, sizeof(byte));
  for (int b = 0; b < c.backends; ++b) {
    backends.push_back(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backends[b], 1);
    // Two of the same kind of memory would be taken for one backend.
    memories.push_back(b == 0 ? ggml_backend_cpu_buffer_type()
                              : ggml_backend_buffer_get_type(other));
  }
  ggml_backend_buffer_t weights_buffer = ggml_backend_alloc_ctx_tensors(weights_ctx, backends[0]);
  ggml_backend_sched_t sched =
      ggml_backend_sched_new(backends.data(), memories.data(), c.backends, nodes,
                             /*parallel=*/false, /*op_offload=*/false);
  for (int i = 0; c.backends == 2 && i < n_forward; ++i) {
    ggml_tensor* node = ggml_graph_node(graph, i);
    const char* dash = std::strrchr(node->name, '-');
    if (std::strncmp(node->name, "ffn_", 4) == 0 && dash != nullptr) {
      ggml_backend_sched_set_tensor_backend(sched, node, backends[std::atoi(dash + 1) % 2]);
    }
  }
  if (!ggml_backend_sched_alloc_graph(sched, graph)) {
    std::fprintf(stderr, "error: no memory for the graph\n");
    return 1;
  }
  size_t bytes = 0;
  for (ggml_backend_t backend : backends)
    bytes += ggml_backend_sched_get_buffer_size(sched, backend);
  std::printf("%d operations run again in backward; %d splits, compute buffer %zu bytes\n", again,
              ggml_backend_sched_get_n_splits(sched), bytes);

  // The data: bytes of a text of our own, each to be followed by the next.
  const char* text = "one for the layers that keep, two for the layers that run again; ";
  std::vector<int32_t> input(c.tokens);
  std::vector<float> target(size_t(kVocabulary) * c.tokens, 0.0f);
  const int length = int(std::string(text).size());
  for (int t = 0; t < c.tokens; ++t) {
    input[t] = text[t % length];
    target[size_t(t) * kVocabulary + text[(t + 1) % length]] = 1.0f;
  }
  initialize(model);
  ggml_backend_tensor_set(tokens, input.data(), 0, ggml_nbytes(tokens));
  ggml_backend_tensor_set(labels, target.data(), 0, ggml_nbytes(labels));
  ggml_graph_reset(graph);

  for (int step = 1; step <= c.steps; ++step) {
    const float beta1 = 0.9f, beta2 = 0.95f;
    const float parameters[7] = {/*alpha=*/3e-3f,
                                 beta1,
                                 beta2,
                                 /*eps=*/1e-8f,
                                 /*decay=*/0.1f,
                                 1.0f / (1.0f - std::pow(beta1, float(step))),
                                 1.0f / (1.0f - std::pow(beta2, float(step)))};
    ggml_backend_tensor_set(adamw, parameters, 0, sizeof(parameters));
    ggml_backend_sched_graph_compute(sched, graph);
    float value = 0;
    ggml_backend_tensor_get(loss, &value, 0, sizeof(value));
    std::printf("step %d: loss %.9g, weights %016llx\n", step, value,
                static_cast<unsigned long long>(hash_of(model.weights)));
  }

  ggml_backend_sched_free(sched);
  ggml_backend_buffer_free(weights_buffer);
  ggml_backend_buffer_free(other);
  for (ggml_backend_t backend : backends) ggml_backend_free(backend);
  ggml_free(ctx);
  ggml_free(weights_ctx);
}
