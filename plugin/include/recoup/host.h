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

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recoup/plugin.h"

/* A loaded plugin. All zero: no plugin, and every layer recomputes nothing. */
typedef struct recoup_loaded {
  const recoup_plugin_v1* api;
  void* plugin;
  recoup_layer_hook hook;
  void* hook_plugin;
} recoup_loaded;

/* Whether anybody configured anything. If not, recoup_load() looks for no library. */
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
 * register_layer_hook and host are set here. `error` takes a sentence; *loaded is all zero then. */
static inline recoup_status recoup_load(recoup_loaded* loaded, const char* library,
                                        recoup_host_v1* host, char* error, size_t error_size) {
  memset(loaded, 0, sizeof(*loaded));
  if (!recoup_is_configured(host)) return RECOUP_OK;
  if (library == NULL || *library == '\0') library = getenv("RECOUP_PLUGIN");
  if (library == NULL || *library == '\0') library = "librecoup_policy.so";
  /* Never closed: the hook's code stays valid for the life of the process. */
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  recoup_entry entry = NULL;
  if (handle == NULL) {
    const char* why = dlerror();
    snprintf(
        error, error_size, "recoup: cannot load the plugin %s: %s; give the path of %s", library,
        why != NULL ? why : "unknown error",
        host->torch_version != NULL
            ? "librecoup.so, built with this host's LibTorch"
            : "librecoup_policy.so, which needs no LibTorch (cmake -DRECOUP_TORCH=OFF builds it)");
    return RECOUP_INCOMPATIBLE;
  }
  void* symbol = dlsym(handle, RECOUP_ENTRY_SYMBOL);
  memcpy(&entry, &symbol, sizeof(entry)); /* ISO C converts no object pointer to a function's */
  const recoup_plugin_v1* api = entry != NULL ? entry(RECOUP_ABI_VERSION) : NULL;
  if (api == NULL || api->abi_version != RECOUP_ABI_VERSION ||
      api->struct_size < offsetof(recoup_plugin_v1, finalize) + sizeof(api->finalize)) {
    snprintf(error, error_size,
             "recoup: %s is no recoup plugin of ABI version %u; build the plugin and the host from "
             "the same recoup",
             library, RECOUP_ABI_VERSION);
    return RECOUP_INCOMPATIBLE;
  }
  host->struct_size = sizeof(*host);
  host->register_layer_hook = recoup_keep_hook;
  host->host = loaded;
  recoup_status status = api->init(&loaded->plugin, host, error, error_size);
  if (status == RECOUP_OK && loaded->hook == NULL) {
    snprintf(error, error_size, "recoup: %s registered no layer-construction hook", library);
    status = RECOUP_INCOMPATIBLE;
    api->finalize(loaded->plugin);
  }
  if (status == RECOUP_OK) loaded->api = api;
  if (status != RECOUP_OK) memset(loaded, 0, sizeof(*loaded));
  return status;
}

/* Fills the decisions of `layer`; the caller has set layer_number and, where they differ from 0,
 * is_moe and stage_offset. */
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
