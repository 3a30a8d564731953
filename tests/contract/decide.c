/* A host in C as it was compiled with one version's plugin.h (PLUGIN_HEADER): loads a library of any
 * version, asks for each layer, prints what is to be done, and checks that nothing was written
 * behind a struct.
 *
 *   decide LIBRARY YAML LAYERS     every third layer is MoE; YAML is the text itself */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include PLUGIN_HEADER

enum { kGuard = 64 };

/* A struct with guard bytes behind it. */
static void* guarded(size_t size) {
  unsigned char* bytes = malloc(size + kGuard);
  memset(bytes, 0, size);
  memset(bytes + size, 0xab, kGuard);
  return bytes;
}

static void check(const void* pointer, size_t size, const char* what) {
  const unsigned char* bytes = pointer;
  int i;
  for (i = 0; i < kGuard; ++i) {
    if (bytes[size + i] != 0xab) {
      printf("written %d bytes behind %s\n", i + 1, what);
      exit(3);
    }
  }
}

static recoup_layer_hook hook;
static void* hook_plugin;

static recoup_status keep(void* host, recoup_layer_hook given, void* plugin) {
  (void)host;
  hook = given;
  hook_plugin = plugin;
  return RECOUP_OK;
}

static void log_line(void* user, recoup_log_level level, const char* line) {
  (void)user;
  fprintf(stderr, "%s%s\n", level == RECOUP_LOG_WARNING ? "WARNING: " : "", line);
}

static void print(const recoup_layer_v1* layer) {
  printf("%lld mlp=%d modules=%u full=%lld activation=%d distribute=%d profile=%d\n",
         (long long)layer->layer_number, layer->recompute_mlp, layer->recompute_modules,
         (long long)layer->full_group, layer->mlp_activation_only,
         layer->distribute_saved_activations, layer->profile);
}

int main(int argc, char** argv) {
  char error[1024] = "";
  const recoup_plugin_v1* api;
  recoup_host_v1* host = guarded(sizeof(*host));
  recoup_entry entry = NULL;
  void *library, *symbol, *plugin = NULL;
  long long n, layers;
  if (argc != 4) return 2;
  library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    printf("%s\n", dlerror());
    return 2;
  }
  symbol = dlsym(library, RECOUP_ENTRY_SYMBOL);
  memcpy(&entry, &symbol, sizeof(entry));
  api = entry(RECOUP_ABI_VERSION);
  if (api == NULL) return 2;
  layers = atoll(argv[3]);
  host->struct_size = sizeof(*host);
  host->name = "decide";
  host->num_layers = host->stage_num_layers = layers;
  host->modules = ~0u;
  host->log = log_line;
  host->register_layer_hook = keep;
  host->config_yaml = argv[2];
#ifdef RECOUP_ABI_MINOR
  host->capabilities = RECOUP_CAN_FULL | RECOUP_CAN_DISTRIBUTE | RECOUP_CAN_STAGES;
#endif
  if (api->init(&plugin, host, error, sizeof(error)) != RECOUP_OK) {
    printf("%s\n", error);
    return 1;
  }
  check(host, sizeof(*host), "recoup_host_v1");
  for (n = 1; n <= layers; ++n) {
    recoup_layer_v1* layer = guarded(sizeof(*layer));
    layer->struct_size = sizeof(*layer);
    layer->layer_number = n;
    layer->is_moe = n % 3 == 0;
    if (hook(hook_plugin, layer, error, sizeof(error)) != RECOUP_OK) {
      printf("%s\n", error);
      return 1;
    }
    check(layer, sizeof(*layer), "recoup_layer_v1");
    print(layer);
#ifdef RECOUP_ABI_MINOR
    if (RECOUP_HAS(recoup_plugin_v1, api, decide)) {
      recoup_layer_v1* again = guarded(sizeof(*again));
      again->struct_size = sizeof(*again);
      again->layer_number = n;
      again->is_moe = layer->is_moe;
      again->handle = layer->handle;
      if (api->decide(plugin, again, error, sizeof(error)) != RECOUP_OK) {
        printf("%s\n", error);
        return 1;
      }
      check(again, sizeof(*again), "recoup_layer_v1 in decide");
      if (memcmp(again, layer, sizeof(*layer)) != 0) {
        printf("decide says otherwise than the hook\n");
        return 3;
      }
      free(again);
    } else if (layer->handle != NULL) {
      printf("a handle from a library that has no decide\n");
      return 3;
    }
#endif
    free(layer);
  }
  api->finalize(plugin);
  free(host);
  return 0;
}
