/* The host's side of recoup's plugin interface for hosts in C, header-only: what recoup/host.hpp is
 * for C++. C99 to C2x and C++17; needs dlopen (-ldl before glibc 2.34). A whole host:
 *
 *   #include "recoup/host.h"
 *   int main(int argc, char** argv) {
 *     recoup_loaded recoup = {0};
 *     recoup_host_v1 host = {0};
 *     char error[1024];
 *     host.name = "my_trainer";
 *     host.config_path = argc > 1 ? argv[1] : NULL;
 *     host.num_layers = 4;
 *     host.modules = RECOUP_MLP;
 *     if (recoup_load(&recoup, NULL, &host, error, sizeof(error)) != RECOUP_OK) {
 *       fprintf(stderr, "%s\n", error);
 *       return 1;
 *     }
 *     for (int l = 0; l < 4; l++) {
 *       recoup_layer_v1 layer = {0};
 *       layer.layer_number = l + 1;
 *       if (recoup_ask(&recoup, &layer, error, sizeof(error)) != RECOUP_OK) {
 *         fprintf(stderr, "%s\n", error);
 *         return 1;
 *       }
 *       printf("layer %d: %s\n", l + 1, layer.recompute_mlp ? "recompute the MLP" : "keep all");
 *     }
 *     recoup_unload(&recoup);
 *     return 0;
 *   }
 */
#ifndef RECOUP_HOST_H_
#define RECOUP_HOST_H_

/* First, so that it can have dladdr1(); <stdio.h>, <stdlib.h> and <string.h> come with it. */
#include "recoup/load.h"

/* A loaded plugin. All zero: no plugin, and every layer recomputes nothing. */
typedef struct recoup_loaded {
  const recoup_plugin_v1* api;
  void* plugin;
  recoup_layer_hook hook;
  void* hook_plugin;
} recoup_loaded;

/* Whether the host or its environment configures recoup. */
static inline int recoup_is_configured(const recoup_host_v1* host) {
  const char* path = host->config_path != NULL ? host->config_path : getenv("RECOUP_CONFIG");
  const char* constant = getenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS");
  return (path != NULL && *path != '\0') || host->config_yaml != NULL ||
         (constant != NULL && *constant != '\0');
}

static inline recoup_status recoup_keep_hook(void* loaded, recoup_layer_hook hook, void* plugin) {
  ((recoup_loaded*)loaded)->hook = hook;
  ((recoup_loaded*)loaded)->hook_plugin = plugin;
  return RECOUP_OK;
}

/* Loads `library` (null: the path in the environment variable RECOUP_PLUGIN, else
 * librecoup_policy.so where the loader finds it) and starts it for `host`, of which struct_size,
 * register_layer_hook and host are set here. Where nothing is configured, not even by a constant of
 * the library that is named, *loaded stays all zero. So it does after an error, a sentence. */
static inline recoup_status recoup_load(recoup_loaded* loaded, const char* library,
                                        recoup_host_v1* host, char* error, size_t error_size) {
  const recoup_plugin_v1* api;
  recoup_status status;
  memset(loaded, 0, sizeof(*loaded));
  if (library == NULL || *library == '\0') library = getenv("RECOUP_PLUGIN");
  if (library == NULL || *library == '\0') {
    if (!recoup_is_configured(host)) return RECOUP_OK;
    library = "librecoup_policy.so";
  }
  api = recoup_open(library, host->torch_version, error, error_size);
  if (api == NULL) return RECOUP_INCOMPATIBLE;
  if (!recoup_is_configured(host) && RECOUP_HAS(recoup_plugin_v1, api, configured) &&
      !api->configured(NULL, 0)) {
    return RECOUP_OK;
  }
  host->struct_size = sizeof(*host);
  host->register_layer_hook = recoup_keep_hook;
  host->host = loaded;
  status = api->init(&loaded->plugin, host, error, error_size);
  if (status == RECOUP_OK && loaded->hook == NULL) {
    snprintf(error, error_size, "recoup: %s registered no layer-construction hook", library);
    status = RECOUP_INCOMPATIBLE;
    api->finalize(loaded->plugin);
  }
  if (status == RECOUP_OK) loaded->api = api;
  if (status != RECOUP_OK) memset(loaded, 0, sizeof(*loaded));
  return status;
}

/* Fills the decisions of `layer`; the caller has zeroed it and set layer_number and, where they
 * differ from 0, is_moe, stage_offset and mlp_number. */
static inline recoup_status recoup_ask(const recoup_loaded* loaded, recoup_layer_v1* layer,
                                       char* error, size_t error_size) {
  layer->struct_size = sizeof(*layer);
  return loaded->hook == NULL ? RECOUP_OK
                              : loaded->hook(loaded->hook_plugin, layer, error, error_size);
}

static inline void recoup_unload(recoup_loaded* loaded) {
  if (loaded->api != NULL) loaded->api->finalize(loaded->plugin);
  memset(loaded, 0, sizeof(*loaded));
}

#endif /* RECOUP_HOST_H_ */
