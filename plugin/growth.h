// How structs of the contract grow (see "Growth" in recoup/plugin.h), for the library's side: what
// an older host does not have reads as zero and is never written. An appended field is used through
// these two only.
#pragma once

#include <type_traits>

#include "recoup/plugin.h"

// The field of *pointer, or zero where its owner's struct ends before it.
#define RECOUP_GET(pointer, field)                                                   \
  (RECOUP_HAS(std::decay_t<decltype(*(pointer))>, pointer, field) ? (pointer)->field \
                                                                  : decltype((pointer)->field){})

// Sets the field of *pointer where its owner's struct has it.
#define RECOUP_SET(pointer, field, value)                               \
  do {                                                                  \
    if (RECOUP_HAS(std::decay_t<decltype(*(pointer))>, pointer, field)) \
      (pointer)->field = (value);                                       \
  } while (false)

namespace recoup {

// Frozen with version 1.0: every host that was ever accepted stays accepted.
static_assert(RECOUP_LAYER_V1_MIN == 60 && RECOUP_HOST_V1_MIN == 96 && RECOUP_REGION_V1_MIN == 40 &&
                  RECOUP_PLUGIN_V1_MIN == 64,
              "a struct of version 1.0 has moved");
// The first appended fields start where 1.0's structs ended, padding included, and nothing is
// padded at the end now.
static_assert(offsetof(recoup_layer_v1, handle) == 64 && sizeof(recoup_layer_v1) == 96 &&
                  offsetof(recoup_host_v1, capabilities) == 104 && sizeof(recoup_host_v1) == 160 &&
                  offsetof(recoup_region_v1, layer_number) == 56 &&
                  sizeof(recoup_region_v1) == 104 && offsetof(recoup_plugin_v1, abi_minor) == 64 &&
                  sizeof(recoup_plugin_v1) == 112 && sizeof(recoup_module_info_v1) == 32 &&
                  sizeof(recoup_step_v1) == 16,
              "a struct of version 1.1 has moved");

}  // namespace recoup
