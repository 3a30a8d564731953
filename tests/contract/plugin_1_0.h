/* recoup's plugin interface: the whole contract between a transformer trainer (the host) and a recoup
 * plugin, a shared library. Plain C. C++ hosts include recoup/host.hpp, which loads a plugin and
 * speaks this interface for them in ten lines.
 *
 * How a host uses a plugin:
 *   1. dlopen() the library, dlsym() RECOUP_ENTRY_SYMBOL, call it with RECOUP_ABI_VERSION.
 *   2. init(): the host describes itself. The plugin reads its configuration and calls the host's
 *      register_layer_hook() with its layer-construction hook.
 *   3. For each transformer layer that the host constructs it calls the hook, which says what the
 *      layer recomputes.
 *   4. For each such part of a layer the forward goes through checkpoint(), where there is one.
 *   5. finalize(), once no layer is used any more.
 *
 * Two libraries speak it. librecoup.so has a checkpoint engine for LibTorch hosts. librecoup_policy.so
 * needs no LibTorch; its checkpoint is null: the host has its own and wants the decisions only.
 *
 * Growth: every struct starts with struct_size, which its owner sets to sizeof as it was compiled. A
 * later minor version only appends fields; a reader touches no field beyond the owner's size. A
 * change that breaks this is a new RECOUP_ABI_VERSION and a new entry symbol.
 *
 * Errors: a function that can fail returns a status and writes one complete sentence for a person to
 * error (at most error_size bytes with the terminating zero; error may be null). No exception
 * crosses this interface in either direction.
 *
 * Threads: init, hooks and finalize from one thread at a time; checkpoint from any. Strings belong
 * to the caller and are copied where they are kept. */
#ifndef RECOUP_PLUGIN_H_
#define RECOUP_PLUGIN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RECOUP_ABI_VERSION 1u
#define RECOUP_ENTRY_SYMBOL "recoup_plugin_v1"

typedef enum recoup_status {
  RECOUP_OK = 0,
  RECOUP_INVALID_ARGUMENT = 1, /* the host called wrongly */
  RECOUP_BAD_CONFIG = 2,       /* the YAML file or the constant mode: error names file, line, key */
  RECOUP_INCOMPATIBLE = 3,     /* ABI or LibTorch version: error says what to rebuild */
  RECOUP_CALLBACK_FAILED = 4,  /* the host's forward failed; its exception is in *exception */
  RECOUP_ENGINE_FAILED = 5,    /* the checkpoint engine failed */
  RECOUP_INTERNAL = 6
} recoup_status;

typedef enum recoup_log_level { RECOUP_LOG_INFO = 0, RECOUP_LOG_WARNING = 1 } recoup_log_level;

/* Receives one line without a newline. */
typedef void (*recoup_log_fn)(void* user, recoup_log_level level, const char* line);

/* The modules of a layer, as bits; names are Megatron-LM's. */
typedef enum recoup_module {
  RECOUP_CORE_ATTN = 1 << 0,
  RECOUP_MLP = 1 << 1,
  RECOUP_LAYERNORM = 1 << 2,
  RECOUP_MOE_ACT = 1 << 3,
  RECOUP_MOE = 1 << 4,
  RECOUP_SHARED_EXPERTS = 1 << 5,
  RECOUP_MLA_UP_PROJ = 1 << 6,
  RECOUP_MLP_ACTIVATION = 1 << 7 /* the MLP from fc1's output on; see mlp_activation_only */
} recoup_module;

/* A layer under construction: the host fills the first part, the hook the second. */
typedef struct recoup_layer_v1 {
  size_t struct_size;

  /* In. */
  int64_t layer_number; /* 1-indexed, global over all pipeline stages */
  int32_t is_moe;       /* nonzero: the layer's MLP is a mixture of experts */
  int64_t stage_offset; /* layers before this pipeline stage's first one; 0 without pipelining */

  /* Out. */
  int32_t recompute_mlp;      /* nonzero: recompute the layer's MLP; never for an MoE layer */
  uint32_t recompute_modules; /* all modules to recompute, bits of recoup_module */
  int64_t full_group;         /* granularity full: how many layers from this one on share one
                                 checkpoint; 0: none starts here */
  int32_t mlp_activation_only; /* nonzero, beside recompute_mlp: checkpoint what follows fc1, so
                                  that fc1's output is kept and no GEMM is repeated */
  int32_t distribute_saved_activations; /* nonzero: each tensor-parallel rank keeps only its part of
                                           a checkpoint's input (recoup_region_v1.keep) */
  int32_t profile; /* nonzero: nothing is recomputed; the plugin measures each part that the host
                      sends through checkpoint() (environment variable RECOUP_PROFILE) */
} recoup_layer_v1;

/* The layer-construction hook. `plugin` is what came with it at registration. */
typedef recoup_status (*recoup_layer_hook)(void* plugin, recoup_layer_v1* layer, char* error,
                                           size_t error_size);

/* What the host says of itself. */
typedef struct recoup_host_v1 {
  size_t struct_size;
  const char* name;          /* for messages, such as "gpt_trainer" */
  const char* torch_version; /* TORCH_VERSION that the host was compiled with; null: no LibTorch */
  const char* config_path;   /* YAML file; null: environment variable RECOUP_CONFIG, else none */
  int32_t rank;              /* global rank; only rank 0 logs */
  int64_t num_layers;        /* in the whole model; 0: unknown */
  int64_t stage_num_layers;  /* on this pipeline stage; 0: unknown */
  uint32_t modules;          /* what the host can recompute, bits of recoup_module; a
                                configuration that asks for more is an error */
  recoup_log_fn log;         /* null: lines go to standard error */
  void* log_user;
  /* Keeps the hook for the layers to come; called once, from init. */
  recoup_status (*register_layer_hook)(void* host, recoup_layer_hook hook, void* plugin);
  void* host;
  const char* config_yaml; /* the options themselves, in place of a file; null: see config_path.
                              Errors call it "options". Both given is an error */
} recoup_host_v1;

/* A part of the model to checkpoint: its forward, which is run once now and once in backward.
 * Tensors are the host framework's: for LibTorch, `inputs` is a const std::vector<at::Tensor>* and
 * `outputs` a std::vector<at::Tensor>*. */
typedef struct recoup_region_v1 {
  size_t struct_size;
  const char* name; /* for errors, such as "layer 3 mlp" */
  void* user;
  /* Runs the forward. On an exception: moves it to *(std::exception_ptr*)exception and returns
   * nonzero; it must let none out. */
  int32_t (*forward)(void* user, const void* inputs, void* outputs, void* exception);
  /* Called exactly once, when the forward is no longer needed, also where checkpoint() fails. */
  void (*release)(void* user);
  /* For distribute_saved_activations, else null, both or none. Before the forward keep() makes of
   * its inputs what is held until the recompute (tensors without history, as few bytes as can
   * be), and before the recompute restore() makes of that the inputs' values. Types and errors as
   * for forward. */
  int32_t (*keep)(void* user, const void* inputs, void* kept, void* exception);
  int32_t (*restore)(void* user, const void* kept, void* inputs, void* exception);
} recoup_region_v1;

typedef struct recoup_plugin_v1 {
  size_t struct_size;
  uint32_t abi_version;
  const char* name;
  const char* version;
  const char* torch_version; /* that this library was built with; null: it needs none */

  /* Starts the plugin for one model.
   * Output: *plugin, to be passed to checkpoint and finalize. Null after an error, and then no hook
   * is registered: nothing is half-applied. */
  recoup_status (*init)(void** plugin, const recoup_host_v1* host, char* error, size_t error_size);

  /* Runs region->forward(inputs) so that only `inputs` are kept until backward; see
   * recoup/checkpoint.h for what that means. Fills `outputs`. An exception of the forward, or of
   * the engine, is in *(std::exception_ptr*)exception; the host rethrows it.
   * Null where the library has no engine. */
  recoup_status (*checkpoint)(void* plugin, const recoup_region_v1* region, const void* inputs,
                              void* outputs, void* exception, char* error, size_t error_size);

  /* Frees the plugin. Regions still waiting for their backward stay valid. Null is allowed. */
  void (*finalize)(void* plugin);
} recoup_plugin_v1;

/* The type of the entry symbol. Returns null where the library does not speak `abi_version`; the
 * returned struct is constant and lives as long as the library. */
typedef const recoup_plugin_v1* (*recoup_entry)(uint32_t abi_version);

#ifdef __cplusplus
}
#endif

#endif /* RECOUP_PLUGIN_H_ */
