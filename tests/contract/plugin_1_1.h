/* recoup's plugin interface: the whole contract between a transformer trainer (the host) and a
 * recoup plugin, a shared library. Plain C. C++ hosts include recoup/host.hpp, which loads a plugin
 * and speaks this interface for them in ten lines.
 *
 * How a host uses a plugin:
 *   1. dlopen() the library, dlsym() RECOUP_ENTRY_SYMBOL, call it with RECOUP_ABI_VERSION
 *      (recoup/load.h does it, and says in a sentence what is wrong with a file).
 *   2. init(): the host describes itself. The plugin reads its configuration and calls the host's
 *      register_layer_hook() with its layer-construction hook.
 *   3. For each transformer layer that the host constructs it calls the hook, which says what the
 *      layer recomputes.
 *   4. In each forward of the layer it asks decide(), whose answer may change between forwards.
 *      Each part of the layer that recomputes goes through checkpoint(), where there is one.
 *   5. step_end() after each optimizer step, where a memory budget is to be kept.
 *   6. close(), once no layer is used any more.
 *
 * Two libraries speak it. librecoup.so has a checkpoint engine for LibTorch hosts.
 * librecoup_policy.so needs no LibTorch; its checkpoint is null: the host has its own and wants the
 * decisions only.
 *
 * Growth: every struct starts with struct_size, which its owner sets to sizeof as it was compiled.
 * A later minor version only appends fields, each marked "since 1.n"; a reader touches no field
 * beyond the owner's size (RECOUP_HAS) and a field that is not there counts as zero. The smallest
 * sizes that are accepted are those of version 1.0, and frozen (RECOUP_*_V1_MIN). An appended field
 * starts at the struct's landed sizeof and a minor version fills its last eight bytes, so that no
 * field ever lies in an older struct's padding. A change that breaks this is a new
 * RECOUP_ABI_VERSION and a new entry symbol.
 *
 * Errors: a function that can fail returns a status and writes one complete sentence for a person
 * to error (at most error_size bytes with the terminating zero; error may be null). No exception
 * crosses this interface in either direction.
 *
 * Threads: init, the hook, close and finalize from any thread; a plugin that is closed while a call
 * on another thread runs is freed when that returns. decide and checkpoint from any thread at any
 * time. The log function may be called from any thread that calls a function.
 *
 * Ownership: strings and structs belong to the caller and are copied where they are kept. What the
 * plugin returns (its table, modules) is constant and lives as long as the library. */
#ifndef RECOUP_PLUGIN_H_
#define RECOUP_PLUGIN_H_

#include <stddef.h>
#include <stdint.h>

#include "recoup/modules.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RECOUP_ABI_VERSION 1u
#define RECOUP_ABI_MINOR 1u /* the version of this header is 1.1 */
#define RECOUP_ENTRY_SYMBOL "recoup_plugin_v1"

/* Whether a struct, as its owner compiled it, has `field`; `pointer` is not null. */
#define RECOUP_HAS(type, pointer, field) \
  ((pointer)->struct_size >= offsetof(type, field) + sizeof(((type*)0)->field))

typedef enum recoup_status {
  RECOUP_OK = 0,
  RECOUP_INVALID_ARGUMENT = 1, /* the host called wrongly */
  RECOUP_BAD_CONFIG = 2,       /* the YAML file or the constant mode: error names file, line, key */
  RECOUP_INCOMPATIBLE = 3,     /* ABI or LibTorch version: error says what to rebuild */
  RECOUP_CALLBACK_FAILED = 4,  /* one of the host's functions failed */
  RECOUP_ENGINE_FAILED = 5,    /* the checkpoint engine itself failed */
  RECOUP_INTERNAL = 6          /* anything else, such as no memory */
} recoup_status;

typedef enum recoup_log_level { RECOUP_LOG_INFO = 0, RECOUP_LOG_WARNING = 1 } recoup_log_level;

/* Receives one line without a newline. */
typedef void (*recoup_log_fn)(void* user, recoup_log_level level, const char* line);

/* What a layer's host may say in recoup_layer_v1.flags. */
typedef enum recoup_layer_flag {
  RECOUP_LAYER_QUERY = 1 << 0 /* only asks: nothing is logged, counted or kept, handle stays null */
} recoup_layer_flag;

/* A layer under construction: the host fills what is "in" and zeroes the rest, the hook fills what
 * is "out". After an error no "out" field has been touched. */
typedef struct recoup_layer_v1 {
  size_t struct_size;

  /* In. */
  int64_t layer_number; /* 1-indexed, global over all pipeline stages */
  int32_t is_moe;       /* nonzero: the layer's MLP is a mixture of experts */
  int64_t stage_offset; /* layers before this pipeline stage's first one; 0 without pipelining */

  /* Out. */
  int32_t recompute_mlp;       /* nonzero: recompute the layer's MLP; never for an MoE layer */
  uint32_t recompute_modules;  /* all modules to recompute, bits of recoup_module */
  int64_t full_group;          /* granularity full: how many layers from this one on share one
                                  checkpoint; 0: none starts here */
  int32_t mlp_activation_only; /* nonzero, beside recompute_mlp: checkpoint what follows fc1, so
                                  that fc1's output is kept and no GEMM is repeated */
  int32_t distribute_saved_activations; /* nonzero: each tensor-parallel rank keeps only its part of
                                           a checkpoint's input (recoup_region_v1.keep) */
  int32_t profile; /* nonzero: nothing is recomputed; the plugin measures each part that the host
                      sends through checkpoint() (environment variable RECOUP_PROFILE) */

  /* Since 1.1. */
  void* handle;       /* out: the layer, for decide(); no address, and valid until close */
  uint64_t flags;     /* in: bits of recoup_layer_flag */
  int64_t mlp_number; /* in: this layer's number among the model's dense MLPs, 1-indexed, for
                         recompute_layer_scope: mlp; 0: unknown, or an MoE layer */
  int64_t microbatch; /* in, for decide: the number of the microbatch whose forward begins, among
                         those of this optimizer step, 1-indexed; 0: unknown, and then a budget
                         decides alike for all microbatches */
} recoup_layer_v1;
#define RECOUP_LAYER_V1_MIN (offsetof(recoup_layer_v1, profile) + sizeof(int32_t))

/* The layer-construction hook. `plugin` is what came with it at registration.
 * Errors: RECOUP_INVALID_ARGUMENT for a plugin that is closed or not this library's, a struct below
 * RECOUP_LAYER_V1_MIN, or numbers that no layer has; *layer is as it was. */
typedef recoup_status (*recoup_layer_hook)(void* plugin, recoup_layer_v1* layer, char* error,
                                           size_t error_size);

/* What a host can do beyond recomputing modules, bits of recoup_host_v1.capabilities. A
 * configuration that asks for what the host does not offer is an error. */
typedef enum recoup_capability {
  RECOUP_CAN_FULL = 1 << 0,       /* checkpoints whole layers: reads full_group */
  RECOUP_CAN_DISTRIBUTE = 1 << 1, /* gives its regions keep and restore */
  RECOUP_CAN_STAGES = 1 << 2,     /* gives stage_offset, and stage_num_layers where it is known */
  RECOUP_CAN_COUNT_MLPS = 1 << 3, /* gives mlp_number, and num_mlps where it is known */
  RECOUP_CAN_BUDGET = 1 << 4      /* calls decide() in each forward and step_end() after each
                                     optimizer step; gives `memory`, unless its tensors are
                                     LibTorch's on an accelerator, whose allocator is asked */
} recoup_capability;

/* What a host says of an optimizer step. Since 1.1. */
typedef enum recoup_step_flag {
  RECOUP_STEP_FAILED = 1 << 0, /* an exception ended it: what was measured is of no use */
  RECOUP_STEP_SKIPPED = 1 << 1 /* the optimizer did not run (a loss scaler found infinities) */
} recoup_step_flag;
typedef struct recoup_step_v1 {
  size_t struct_size;
  uint64_t flags; /* bits of recoup_step_flag */
} recoup_step_v1;

/* What the host says of itself. Copied by init. */
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
  recoup_log_fn log;         /* null: lines go to standard error. Called until close returns */
  void* log_user;
  /* Keeps the hook for the layers to come; called once, from init. */
  recoup_status (*register_layer_hook)(void* host, recoup_layer_hook hook, void* plugin);
  void* host;
  const char* config_yaml; /* the options themselves, in place of a file; null: see config_path.
                              Errors call it "options". Both given is an error */

  /* Since 1.1. */
  uint64_t capabilities; /* bits of recoup_capability. A host of version 1.0 cannot say them: what
                            it is asked for is allowed, with a notice */
  int64_t num_mlps;      /* dense MLPs in the whole model; 0: unknown */
  /* For RECOUP_CAN_BUDGET: the bytes of this rank's device that are allocated now, and the most
   * that were since the last call with `restart` nonzero, from which the next stretch begins.
   * Returns 0, or anything else where they are not known. Called at each step's end, and in the
   * few steps that are measured in the middle of forwards and backwards, from their threads. Null:
   * LibTorch's allocator is asked, which only accelerators have. */
  int32_t (*memory)(void* host, int32_t restart, int64_t* bytes, int64_t* peak);
  /* Replaces each of `count` values by its maximum over the ranks that must decide alike because
   * their layers communicate (tensor and context parallel, FSDP or ZeRO groups), `count` being the
   * same on all of them. Called in every step_end, at most twice. Returns 0, or anything else
   * where it failed. Null: this rank decides by itself. */
  int32_t (*agree)(void* host, int64_t* values, size_t count);
  int64_t device_bytes;    /* that this rank may use at most, for budgets of 90% and auto; 0:
                              unknown */
  int64_t pipeline_stages; /* 0 and 1: no pipelining */
  int64_t pipeline_stage;  /* this rank's, from 0 */
} recoup_host_v1;
#define RECOUP_HOST_V1_MIN (offsetof(recoup_host_v1, host) + sizeof(void*))

/* A part of the model to checkpoint: its forward, which is run once now and once in backward.
 * Tensors are the host framework's: for LibTorch, `inputs` is a const std::vector<at::Tensor>* and
 * `outputs` a std::vector<at::Tensor>*. The struct is copied; only `user` must live on. */
typedef struct recoup_region_v1 {
  size_t struct_size;
  const char* name; /* for errors, such as "layer 3 mlp" */
  void* user;
  /* Runs the forward. On an exception: moves it to *(std::exception_ptr*)exception and returns
   * nonzero; it must let none out. Called in checkpoint()'s thread, later in backward's. */
  int32_t (*forward)(void* user, const void* inputs, void* outputs, void* exception);
  /* Frees `user`. Called exactly once, when the forward is no longer needed, from the thread that
   * drops the graph; also where checkpoint() fails, then before it returns. */
  void (*release)(void* user);
  /* For distribute_saved_activations, else null, both or none. Before the forward keep() makes of
   * its inputs what is held until the recompute (tensors without history, as few bytes as can
   * be), and before the recompute restore() makes of that the inputs' values. Types and errors as
   * for forward. */
  int32_t (*keep)(void* user, const void* inputs, void* kept, void* exception);
  int32_t (*restore)(void* user, const void* kept, void* inputs, void* exception);

  /* Since 1.1: what the region is, for profile, trace and the plugin's own book-keeping. */
  int64_t layer_number; /* as given to the hook; 0: unknown */
  const char* part;     /* of the layer, such as "mlp", "mlp.rest" or "core_attn"; null: unknown */
  uint64_t modules;     /* the modules that it is a part of, bits of recoup_module; 0: unknown */
  /* Where not null the region is rest(forward(inputs)), and only forward() is run once more in
   * backward, to its end: for an MLP, fc1 and the activation, then what follows. Where the rest
   * saves something of its own (a dropout's mask), both are run again, as one; see
   * checkpoint_parts() in recoup/checkpoint/checkpoint.h. Types and errors as for forward. */
  int32_t (*rest)(void* user, const void* inputs, void* outputs, void* exception);
  int64_t microbatch;       /* as for decide() */
  const int64_t* fc1_bytes; /* for an MLP recomputed as a whole that could be recomputed from fc1's
                               output on: two numbers, the bytes of that output, written by
                               forward() as soon as it is there, and whether forward() holds it
                               until it ends (1, else 0). Read while forward() runs. Null: unknown,
                               and then a budget does not choose that level */
} recoup_region_v1;
#define RECOUP_REGION_V1_MIN \
  (offsetof(recoup_region_v1, release) + sizeof(((recoup_region_v1*)0)->release))

/* A module as the plugin knows it: a row of recoup/modules.h, for hosts that cannot include it.
 * Since 1.1. */
typedef struct recoup_module_info_v1 {
  size_t struct_size;
  const char* name;    /* as the configuration calls it, such as "core_attn" */
  const char* meaning; /* for a person */
  uint32_t bit;
  int32_t layers; /* which layers have it, a recoup_layer_kind */
} recoup_module_info_v1;

typedef struct recoup_plugin_v1 {
  size_t struct_size;
  uint32_t abi_version;
  const char* name;
  const char* version;       /* of recoup, such as "0.1.0" */
  const char* torch_version; /* that this library was built with; null: it needs none */

  /* Starts the plugin for one model.
   * Output: *plugin, to be passed to the other functions. It is no address: a handle that the
   * library checks. Null after an error, and then the hook must not be called.
   * Errors: RECOUP_INVALID_ARGUMENT (host below RECOUP_HOST_V1_MIN or without
   * register_layer_hook), RECOUP_INCOMPATIBLE, RECOUP_BAD_CONFIG, or what register_layer_hook
   * returned. Nothing is half-applied. */
  recoup_status (*init)(void** plugin, const recoup_host_v1* host, char* error, size_t error_size);

  /* Runs region->forward(inputs) so that only `inputs` are kept until backward; see
   * recoup/checkpoint/checkpoint.h for what that means. Fills `outputs`. Null where the library
   * has no engine.
   * Errors: RECOUP_CALLBACK_FAILED and RECOUP_ENGINE_FAILED, with an exception in
   * *(std::exception_ptr*)exception that the host rethrows; RECOUP_INVALID_ARGUMENT with a null
   * *exception. After any error `outputs` is as it was and release has been called (only where the
   * region is null, below RECOUP_REGION_V1_MIN or has no release it cannot be). */
  recoup_status (*checkpoint)(void* plugin, const recoup_region_v1* region, const void* inputs,
                              void* outputs, void* exception, char* error, size_t error_size);

  /* close() for those who ask for no status: what close would say goes to the log, what is wrong
   * with the handle to standard error. Null is allowed. */
  void (*finalize)(void* plugin);

  /* Since 1.1. */
  uint64_t abi_minor; /* RECOUP_ABI_MINOR that this library was built with */

  /* The modules that this library knows, in the order of the table; null from the first index on
   * that has none. */
  const recoup_module_info_v1* (*module)(size_t index);

  /* Whether anything outside the host configures recoup: an environment variable, or the CMake
   * constant that this library was built with. Before init, for hosts that otherwise do without a
   * plugin. Returns 1 or 0; `what` gets the names of what does, separated by commas (at most
   * what_size bytes with the terminating zero; may be null). */
  int32_t (*configured)(char* what, size_t what_size);

  /* What the layer recomputes in the forward that begins now: fills the "out" fields of *layer,
   * handle apart, which says the layer together with struct_size. Cheap enough for each forward.
   * Errors: RECOUP_INVALID_ARGUMENT for a plugin that is closed or not this library's, or a handle
   * that its hook did not give; *layer is as it was. */
  recoup_status (*decide)(void* plugin, recoup_layer_v1* layer, char* error, size_t error_size);

  /* Writes what is to be written (profile, trace) and frees the plugin. Regions still waiting for
   * their backward stay valid. Null is allowed.
   * Errors: RECOUP_INVALID_ARGUMENT for a plugin that is closed already or not this library's, and
   * nothing is done; RECOUP_INTERNAL where a file could not be written: the plugin is closed. */
  recoup_status (*close)(void* plugin, char* error, size_t error_size);

  /* An optimizer step is over: to be called after the optimizer and before the next forward, also
   * where the step failed or was skipped, on every rank (ranks that `agree` would wait for ever for
   * one that does not). Does nothing where no budget is kept.
   * Errors: RECOUP_INVALID_ARGUMENT for a plugin that is closed or not this library's, or a step
   * below its first size; RECOUP_CALLBACK_FAILED where `memory` or `agree` failed: all that may be
   * recomputed is, until a later step can be measured. */
  recoup_status (*step_end)(void* plugin, const recoup_step_v1* step, char* error,
                            size_t error_size);
} recoup_plugin_v1;
#define RECOUP_PLUGIN_V1_MIN \
  (offsetof(recoup_plugin_v1, finalize) + sizeof(((recoup_plugin_v1*)0)->finalize))

/* The type of the entry symbol. Returns null where the library does not speak `abi_version`; the
 * returned struct is constant and lives as long as the library. */
typedef const recoup_plugin_v1* (*recoup_entry)(uint32_t abi_version);

#ifdef __cplusplus
}
#endif

#endif /* RECOUP_PLUGIN_H_ */
