// Plugins that are wrong in one way each; WRONG chooses.
#include "recoup/plugin.h"

#define NO_SYMBOL 1
#define OTHER_ABI 2
#define OTHER_VERSION_IN_STRUCT 3
#define SHORT_STRUCT 4
#define NO_HOOK 5
#define DATA_FOR_CODE 6

namespace {
[[maybe_unused]] recoup_status init(void** plugin, const recoup_host_v1*, char*, size_t) {
  *plugin = nullptr;
  return RECOUP_OK;
}
[[maybe_unused]] const recoup_plugin_v1 plugin = {
    WRONG == SHORT_STRUCT ? sizeof(size_t) : sizeof(recoup_plugin_v1),
    WRONG == OTHER_VERSION_IN_STRUCT ? 99u : RECOUP_ABI_VERSION,
    "bad",
    "0",
    nullptr,
    &init,
    nullptr,
    [](void*) {}};
}  // namespace

#if WRONG == DATA_FOR_CODE
extern "C" int recoup_plugin_v1_data __asm__(RECOUP_ENTRY_SYMBOL);
int recoup_plugin_v1_data = 3;
#elif WRONG != NO_SYMBOL
extern "C" const recoup_plugin_v1* recoup_plugin_v1_bad(uint32_t) __asm__(RECOUP_ENTRY_SYMBOL);
const recoup_plugin_v1* recoup_plugin_v1_bad(uint32_t) {
  return WRONG == OTHER_ABI ? nullptr : &plugin;
}
#endif
