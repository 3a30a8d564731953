/* A C11 host that walks the whole contract, rightly and wrongly: struct sizes from 0 to twice,
 * error buffers from 0, handles of all kinds, many threads, many loads. Run as it is, under
 * sanitizers and under valgrind.
 *
 *   walk LIBRARY [LOADS]    prints "ok", or what was not as it should be */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recoup/plugin.h"

enum { kGuard = 64, kThreads = 64, kLayersEach = 200 };
static const char kYaml[] =
    "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 12\n";

#define EXPECT(condition)                                            \
  do {                                                               \
    if (!(condition)) {                                              \
      printf("line %d: not %s (%s)\n", __LINE__, #condition, error); \
      exit(1);                                                       \
    }                                                                \
  } while (0)

typedef struct Kept {
  recoup_layer_hook hook;
  void* plugin;
} Kept;

static recoup_status keep(void* host, recoup_layer_hook hook, void* plugin) {
  ((Kept*)host)->hook = hook;
  ((Kept*)host)->plugin = plugin;
  return RECOUP_OK;
}

static recoup_status refuse(void* host, recoup_layer_hook hook, void* plugin) {
  keep(host, hook, plugin);
  return RECOUP_INTERNAL;
}

static void silent(void* user, recoup_log_level level, const char* line) {
  (void)user, (void)level, (void)line;
}

static recoup_host_v1 describe(Kept* kept) {
  recoup_host_v1 host;
  memset(&host, 0, sizeof(host));
  host.struct_size = sizeof(host);
  host.name = "walk";
  host.num_layers = 24;
  host.modules = RECOUP_MLP | RECOUP_MOE;
  host.log = silent;
  host.register_layer_hook = keep;
  host.host = kept;
  host.config_yaml = kYaml;
  return host;
}

/* A copy of the first `size` bytes on the heap, with nothing behind: what a sanitizer or valgrind
 * watches. */
static void* cut(const void* pointer, size_t whole, size_t size) {
  void* bytes = calloc(1, size > 0 ? size : 1);
  memcpy(bytes, pointer, size < whole ? size : whole);
  if (size >= sizeof(size_t)) memcpy(bytes, &size, sizeof(size));
  return bytes;
}

static void host_sizes(const recoup_plugin_v1* api) {
  char error[256] = "";
  size_t size;
  for (size = sizeof(size_t); size <= 2 * sizeof(recoup_host_v1); ++size) {
    Kept kept = {0};
    recoup_host_v1 host = describe(&kept);
    void* plugin = &kept;
    recoup_host_v1* sized = cut(&host, sizeof(host), size);
    recoup_status status = api->init(&plugin, sized, error, sizeof(error));
    EXPECT(status == (size < RECOUP_HOST_V1_MIN ? RECOUP_INVALID_ARGUMENT : RECOUP_OK));
    EXPECT((plugin == NULL) == (status != RECOUP_OK));
    EXPECT(status != RECOUP_OK || kept.plugin == plugin);
    api->finalize(plugin);
    free(sized);
  }
}

static void layer_sizes(const recoup_plugin_v1* api, const Kept* kept) {
  char error[256] = "";
  size_t size;
  for (size = sizeof(size_t); size <= 2 * sizeof(recoup_layer_v1); ++size) {
    recoup_layer_v1 layer;
    recoup_layer_v1* sized;
    recoup_status status;
    memset(&layer, 0, sizeof(layer));
    layer.layer_number = 3;
    sized = cut(&layer, sizeof(layer), size);
    status = kept->hook(kept->plugin, sized, error, sizeof(error));
    EXPECT(status == (size < RECOUP_LAYER_V1_MIN ? RECOUP_INVALID_ARGUMENT : RECOUP_OK));
    if (status == RECOUP_OK) EXPECT(sized->recompute_mlp == 1 && sized->struct_size == size);
    status = size < sizeof(size_t) ? RECOUP_OK : api->decide(kept->plugin, sized, error, 256);
    EXPECT((status == RECOUP_OK) ==
           (size >= offsetof(recoup_layer_v1, handle) + sizeof(layer.handle)));
    free(sized);
  }
}

static void error_sizes(const recoup_plugin_v1* api) {
  const char* error = "";
  size_t size;
  EXPECT(api->init(NULL, NULL, NULL, 0) == RECOUP_INVALID_ARGUMENT);
  EXPECT(api->init(NULL, NULL, NULL, 100) == RECOUP_INVALID_ARGUMENT);
  for (size = 0; size < 100; ++size) {
    char* buffer = malloc(size > 0 ? size : 1);
    void* plugin;
    memset(buffer, 'x', size);
    EXPECT(api->init(&plugin, NULL, buffer, size) == RECOUP_INVALID_ARGUMENT);
    EXPECT(size == 0 ||
           (strlen(buffer) < size && strncmp(buffer, "recoup: init needs a host",
                                             strlen(buffer) < 25 ? strlen(buffer) : 25) == 0));
    memset(buffer, 'x', size);
    api->configured(buffer, size);
    EXPECT(size == 0 || memchr(buffer, 0, size) != NULL);
    free(buffer);
  }
  EXPECT(api->configured(NULL, 0) == 0 || api->configured(NULL, 0) == 1);
}

static void handles(const recoup_plugin_v1* api, const Kept* kept) {
  char error[256] = "";
  recoup_layer_v1 layer;
  uintptr_t bit;
  memset(&layer, 0, sizeof(layer));
  layer.struct_size = sizeof(layer);
  layer.layer_number = 1;
  /* A live handle with any one bit turned is none. */
  for (bit = 0; bit < 64; ++bit) {
    void* wrong = (void*)((uintptr_t)kept->plugin ^ ((uintptr_t)1 << bit));
    EXPECT(kept->hook(wrong, &layer, error, sizeof(error)) == RECOUP_INVALID_ARGUMENT);
    EXPECT(api->decide(wrong, &layer, error, sizeof(error)) == RECOUP_INVALID_ARGUMENT);
    EXPECT(api->close(wrong, error, sizeof(error)) == RECOUP_INVALID_ARGUMENT);
    EXPECT(strncmp(error, "recoup: close: this ", 20) == 0);
  }
  EXPECT(kept->hook(kept->plugin, &layer, error, sizeof(error)) == RECOUP_OK);
  /* So is a layer's. */
  layer.handle = (void*)1000000;
  EXPECT(api->decide(kept->plugin, &layer, error, sizeof(error)) == RECOUP_INVALID_ARGUMENT);
  layer.handle = (void*)-1;
  EXPECT(api->decide(kept->plugin, &layer, error, sizeof(error)) == RECOUP_INVALID_ARGUMENT);
}

static void step_sizes(const recoup_plugin_v1* api, const Kept* kept) {
  char error[256] = "";
  size_t size;
  EXPECT(api->step_end(kept->plugin, NULL, error, 256) == RECOUP_INVALID_ARGUMENT);
  for (size = sizeof(size_t); size <= 2 * sizeof(recoup_step_v1); ++size) {
    recoup_step_v1 step;
    recoup_step_v1* sized;
    memset(&step, 0xff, sizeof(step)); /* flags that nobody knows */
    sized = cut(&step, sizeof(step), size);
    EXPECT(api->step_end(kept->plugin, sized, error, sizeof(error)) ==
           (size < sizeof(step) ? RECOUP_INVALID_ARGUMENT : RECOUP_OK));
    EXPECT(api->step_end((char*)kept->plugin + 1, sized, error, 256) == RECOUP_INVALID_ARGUMENT);
    free(sized);
  }
  EXPECT(api->step_end(NULL, NULL, NULL, 0) == RECOUP_INVALID_ARGUMENT);
}

static void numbers(const Kept* kept) {
  static const int64_t all[] = {INT64_MIN, -1, 0, 1, 24, 25, INT64_MAX};
  char error[256] = "";
  size_t i, j, k;
  for (i = 0; i < 7; ++i) {
    for (j = 0; j < 7; ++j) {
      for (k = 0; k < 7; ++k) {
        recoup_layer_v1 layer;
        int good = all[i] >= 1 && all[j] >= 0 && all[i] > all[j] && all[k] >= 0 && all[k] <= all[i];
        memset(&layer, 0, sizeof(layer));
        layer.struct_size = sizeof(layer);
        layer.layer_number = all[i];
        layer.stage_offset = all[j];
        layer.mlp_number = all[k];
        layer.flags = RECOUP_LAYER_QUERY;
        layer.full_group = 77;
        EXPECT(kept->hook(kept->plugin, &layer, error, sizeof(error)) ==
               (good ? RECOUP_OK : RECOUP_INVALID_ARGUMENT));
        EXPECT(good ? layer.full_group == 0 : layer.full_group == 77);
        EXPECT(!good || layer.recompute_mlp == (all[i] <= 12));
      }
    }
  }
}

typedef struct Job {
  const recoup_plugin_v1* api;
  const Kept* kept;
  int wrong;
} Job;

static void* many_layers(void* argument) {
  Job* job = argument;
  char error[256] = "";
  int i;
  for (i = 0; i < kLayersEach; ++i) {
    recoup_layer_v1 layer, again;
    memset(&layer, 0, sizeof(layer));
    layer.struct_size = sizeof(layer);
    layer.layer_number = 1 + i % 24;
    if (job->kept->hook(job->kept->plugin, &layer, error, sizeof(error)) != RECOUP_OK) ++job->wrong;
    again = layer;
    again.recompute_mlp = 7;
    if (job->api->decide(job->kept->plugin, &again, error, sizeof(error)) != RECOUP_OK)
      ++job->wrong;
    if (again.recompute_mlp != (layer.layer_number <= 12)) ++job->wrong;
    {
      Kept own = {0};
      recoup_host_v1 host = describe(&own);
      void* plugin = NULL;
      if (i % 20 != 0) continue;
      if (job->api->init(&plugin, &host, error, sizeof(error)) != RECOUP_OK) ++job->wrong;
      if (own.hook(plugin, &layer, error, sizeof(error)) != RECOUP_OK) ++job->wrong;
      if (job->api->close(plugin, error, sizeof(error)) != RECOUP_OK) ++job->wrong;
      if (own.hook(plugin, &layer, error, sizeof(error)) == RECOUP_OK) ++job->wrong;
    }
  }
  return NULL;
}

static void threads(const recoup_plugin_v1* api, const Kept* kept) {
  const char* error = "";
  static pthread_t thread[kThreads];
  static Job job[kThreads];
  int t;
  for (t = 0; t < kThreads; ++t) {
    job[t].api = api;
    job[t].kept = kept;
    EXPECT(pthread_create(&thread[t], NULL, many_layers, &job[t]) == 0);
  }
  for (t = 0; t < kThreads; ++t) {
    pthread_join(thread[t], NULL);
    EXPECT(job[t].wrong == 0);
  }
}

int main(int argc, char** argv) {
  char error[256] = "";
  int loads = argc > 2 ? atoi(argv[2]) : 1, load;
  if (argc < 2) return 2;
  for (load = 0; load < loads; ++load) {
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL), *symbol, *plugin = NULL;
    const recoup_plugin_v1* api;
    recoup_entry entry = NULL;
    Kept kept = {0};
    recoup_host_v1 host = describe(&kept);
    size_t m;
    EXPECT(library != NULL);
    symbol = dlsym(library, RECOUP_ENTRY_SYMBOL);
    memcpy(&entry, &symbol, sizeof(entry));
    EXPECT(entry(0) == NULL && entry(RECOUP_ABI_VERSION + 1) == NULL && entry(-1) == NULL);
    api = entry(RECOUP_ABI_VERSION);
    EXPECT(api != NULL && api->struct_size == sizeof(*api) && api->abi_minor == RECOUP_ABI_MINOR);
    EXPECT(api->init(&plugin, &host, error, sizeof(error)) == RECOUP_OK);
    if (load == 0) {
      for (m = 0; api->module(m) != NULL; ++m) EXPECT(api->module(m)->bit != 0);
#define COUNTED(c_name, cc_name, name, bit, layers, meaning) --m;
      RECOUP_MODULES(COUNTED)
#undef COUNTED
      EXPECT(m == 0); /* as many as this header's table has */
      host_sizes(api);
      layer_sizes(api, &kept);
      error_sizes(api);
      handles(api, &kept);
      step_sizes(api, &kept);
      numbers(&kept);
      threads(api, &kept);
    }
    EXPECT(api->close(plugin, error, sizeof(error)) == RECOUP_OK);
    EXPECT(api->close(plugin, error, sizeof(error)) == RECOUP_INVALID_ARGUMENT);
    EXPECT(api->close(NULL, error, sizeof(error)) == RECOUP_OK);
    host.register_layer_hook = refuse;
    EXPECT(api->init(&plugin, &host, error, sizeof(error)) == RECOUP_INTERNAL && plugin == NULL);
    dlclose(library);
  }
  printf("ok\n");
  return 0;
}
