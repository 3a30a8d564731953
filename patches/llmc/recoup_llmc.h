/* Selective MLP recompute for llm.c (train_gpt2.c and train_gpt2.cu), plain C and CUDA C++.
 *
 * llm.c keeps fc1's output (fch) and the GELU (fch_gelu) of all L layers in one array each, layer
 * by layer. Here a layer has a slot in these arrays: one of its own where it keeps the values for
 * backward, and one shared by all layers that recompute them. So with n such layers (n >= 1) the
 * arrays have L - n + 1 slots, and one recomputing layer alone saves nothing.
 *
 * Which layers: recoup's policy plugin, by the flags below, RECOUP_CONFIG, or the quick hack
 * RECOUP_RECOMPUTE_MLP_NUM_LAYERS. Without any of them no plugin is loaded and slot l is layer l.
 * What cannot be done ends the program with one sentence before anything is trained. */
#ifndef RECOUP_LLMC_H_
#define RECOUP_LLMC_H_

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recoup/host.h"

#define RECOUP_LLMC_USAGE                                               \
  "  -rc <int>   recompute the MLP of the first N layers in backward\n" \
  "  -ry <file>  recoup's options in a YAML file\n"                     \
  "  -rp <file>  recoup's plugin, librecoup_policy.so (default: RECOUP_PLUGIN)\n"

/* The flags' values, and what came of them; one model a process, as in llm.c. */
static struct {
  const char *num_layers, *config, *plugin;
  int layers;         /* 0: not started */
  size_t *fch, *gelu; /* each layer's slot */
  size_t fch_slots, gelu_slots;
  recoup_layer_v1* decisions;
} recoup_llmc;

static inline void recoup_fail(const char* flag, const char* value, const char* error) {
  if (flag != NULL) fprintf(stderr, "error: %s %s: %s\n", flag, value, error);
  if (flag == NULL) fprintf(stderr, "error: %s\n", error);
  exit(EXIT_FAILURE);
}

/* Takes a flag of ours with its value; 0: it is none. */
static inline int recoup_flag(const char* flag, const char* value) {
  const char** known = strcmp(flag, "-rc") == 0   ? &recoup_llmc.num_layers
                       : strcmp(flag, "-ry") == 0 ? &recoup_llmc.config
                       : strcmp(flag, "-rp") == 0 ? &recoup_llmc.plugin
                                                  : NULL;
  if (known == NULL) return 0;
  if (*value == '\0') recoup_fail(flag, "''", "needs a value");
  *known = value;
  return 1;
}

/* The whole command line of train_gpt2.c, which has no flags of its own. */
static inline void recoup_flags(int argc, char** argv) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 >= argc || !recoup_flag(argv[i], argv[i + 1])) {
      fprintf(stderr, "error: %s is no flag with a value; allowed are\n" RECOUP_LLMC_USAGE,
              argv[i]);
      exit(EXIT_FAILURE);
    }
  }
}

/* Slots for `layers` layers, those that recompute behind the others: shared. */
static inline size_t recoup_number_slots(size_t* slot, const int* again, int layers) {
  size_t own = 0, shared = 0;
  for (int l = 0; l < layers; l++) {
    if (!again[l]) slot[l] = own++;
    shared |= again[l] != 0;
  }
  for (int l = 0; l < layers; l++) {
    if (again[l]) slot[l] = own;
  }
  return own + shared;
}

/* Asks the plugin about every layer, once; before the sizes of the activations are known. */
static inline void recoup_start(int layers, int rank) {
  char yaml[256], error[1024];
  const char* flag = recoup_llmc.num_layers != NULL ? "-rc"
                     : recoup_llmc.config != NULL   ? "-ry"
                                                    : NULL;
  const char* value = recoup_llmc.num_layers != NULL ? recoup_llmc.num_layers : recoup_llmc.config;
  recoup_host_v1 host;
  recoup_loaded recoup;
  if (recoup_llmc.layers == layers) return;
  memset(&host, 0, sizeof(host));
  host.name = "llm.c";
  host.config_path = recoup_llmc.config;
  if (recoup_llmc.num_layers != NULL) {
    if (strspn(recoup_llmc.num_layers, "0123456789") != strlen(recoup_llmc.num_layers)) {
      recoup_fail(flag, value, "must be a number of layers >= 1");
    }
    snprintf(yaml, sizeof(yaml),
             "recompute_granularity: selective\nrecompute_modules: [mlp]\n"
             "recompute_mlp_num_layers: %s\n",
             recoup_llmc.num_layers);
    host.config_yaml = yaml;
  }
  host.rank = rank;
  host.num_layers = host.stage_num_layers = layers;
  host.num_mlps = layers;
  host.modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION;
  host.capabilities = RECOUP_CAN_STAGES | RECOUP_CAN_COUNT_MLPS; /* one stage, no experts */
  if (recoup_load(&recoup, recoup_llmc.plugin, &host, error, sizeof(error)) != RECOUP_OK) {
    recoup_fail(flag, value, error);
  }

  int* fch_again = (int*)calloc(layers, sizeof(int));
  int* gelu_again = (int*)calloc(layers, sizeof(int));
  recoup_llmc.layers = layers;
  recoup_llmc.fch = (size_t*)calloc(layers, sizeof(size_t));
  recoup_llmc.gelu = (size_t*)calloc(layers, sizeof(size_t));
  recoup_llmc.decisions = (recoup_layer_v1*)calloc(layers, sizeof(recoup_layer_v1));
  int fch_count = 0, gelu_count = 0;
  for (int l = 0; l < layers; l++) {
    recoup_layer_v1* layer = &recoup_llmc.decisions[l];
    layer->layer_number = layer->mlp_number = l + 1;
    if (recoup_ask(&recoup, layer, error, sizeof(error)) != RECOUP_OK)
      recoup_fail(flag, value, error);
    gelu_again[l] = layer->recompute_mlp != 0;
    fch_again[l] = gelu_again[l] && !layer->mlp_activation_only;
    fch_count += fch_again[l];
    gelu_count += gelu_again[l];
  }
  recoup_unload(&recoup);
  recoup_llmc.fch_slots = recoup_number_slots(recoup_llmc.fch, fch_again, layers);
  recoup_llmc.gelu_slots = recoup_number_slots(recoup_llmc.gelu, gelu_again, layers);
  if (rank == 0 && gelu_count > 0) {
    printf("recoup: fc1's output is kept in %zu buffers and the GELU in %zu, for %d layers\n",
           recoup_llmc.fch_slots, recoup_llmc.gelu_slots, layers);
  }
  if (rank == 0 && (fch_count == 1 || (gelu_count == 1 && fch_count == 0))) {
    printf(
        "WARNING: recoup: one layer alone saves nothing: the layers that recompute share a buffer, "
        "so choose two or more\n");
  }
  free(fch_again);
  free(gelu_again);
}

/* Slots of the two arrays, a layer's slot in them, and what its backward computes again. */
static inline size_t recoup_fch_slots(void) { return recoup_llmc.fch_slots; }
static inline size_t recoup_gelu_slots(void) { return recoup_llmc.gelu_slots; }
static inline size_t recoup_fch(int l) { return recoup_llmc.fch[l]; }
static inline size_t recoup_gelu(int l) { return recoup_llmc.gelu[l]; }
static inline int recoup_gelu_again(int l) { return recoup_llmc.decisions[l].recompute_mlp; }
static inline int recoup_fc1_again(int l) {
  return recoup_llmc.decisions[l].recompute_mlp && !recoup_llmc.decisions[l].mlp_activation_only;
}

#endif /* RECOUP_LLMC_H_ */
