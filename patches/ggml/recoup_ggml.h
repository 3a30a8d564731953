/* Per-layer MLP recompute for ggml: rewrites a graph that ggml_build_backward_expand() has just
 * extended, so that the chosen layers' fc1 output and activation are computed again in backward
 * instead of being kept. No kernel changes: the same operations run again on the same inputs, so
 * losses and gradients stay the same to the last bit where the backend is deterministic.
 *
 * Which layers: recoup's policy plugin, by a YAML file, the environment variable RECOUP_CONFIG, or
 * recoup_ggml_configure(). Without any option nothing is loaded and the graph stays as it is.
 *
 * Threads: one graph at a time; the decisions are shared by all graphs of the process. */
#ifndef RECOUP_GGML_H_
#define RECOUP_GGML_H_

#include <stddef.h>
#include <stdint.h>

#include "ggml.h"
#include "recoup/plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a tensor of the forward graph is to recoup. */
typedef enum recoup_ggml_role {
  RECOUP_GGML_OTHER = 0,
  RECOUP_GGML_FC1 = 1,        /* on the way to fc1's output: GEMM (up, gate), bias, scale */
  RECOUP_GGML_ACTIVATION = 2, /* after fc1's output and before fc2: activation, gating */
  RECOUP_GGML_EXPERTS = 3     /* its layer is a mixture of experts: never recomputed as `mlp` */
} recoup_ggml_role;

/* Names a tensor: its role and, unless it is RECOUP_GGML_OTHER, its layer from 0 in *layer. */
typedef recoup_ggml_role (*recoup_ggml_namer)(void* user, const struct ggml_tensor* tensor,
                                              int64_t* layer);

/* llama.cpp's names: ffn_up-L, ffn_gate-L (with _b, _s), ffn_silu-L, ffn_swiglu-L, ...; ffn_moe_*-L
 * and blk.L.ffn_*_exps.weight say that layer L has experts. */
recoup_ggml_role recoup_ggml_llama_names(void* user, const struct ggml_tensor* tensor,
                                         int64_t* layer);

typedef struct recoup_ggml_options {
  const char* config_path; /* YAML file; null: RECOUP_CONFIG, else none */
  const char* config_yaml; /* the options themselves, in place of a file; null: none */
  const char* plugin;      /* librecoup_policy.so; null: RECOUP_PLUGIN, else the loader's path */
  recoup_ggml_namer namer; /* null: recoup_ggml_llama_names */
  void* namer_user;
  recoup_log_fn log; /* null: standard error */
  void* log_user;
} recoup_ggml_options;

/* Sets the options of the graphs to come (null: the defaults); strings are copied. The plugin is
 * loaded by the first graph, which is what knows the number of layers. */
void recoup_ggml_configure(const recoup_ggml_options* options);

/* Rewrites `graph`, of which the first `n_forward` nodes are the forward's and the rest is what
 * ggml_build_backward_expand() added; before anything is allocated. New tensors live in `ctx`.
 * Returns how many operations run again, or -1 with a sentence in `error`; the graph is as it was
 * then. */
int recoup_ggml_rewrite(struct ggml_context* ctx, struct ggml_cgraph* graph, int n_forward,
                        char* error, size_t error_size);

/* The same for ggml_opt_build(), which cannot fail: an error ends the process by GGML_ABORT. */
void recoup_ggml_recompute(struct ggml_context* ctx, struct ggml_cgraph* graph, int n_forward);

#ifdef __cplusplus
}
#endif

#endif /* RECOUP_GGML_H_ */
