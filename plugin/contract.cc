// The contract's functions but for checkpoint(): what both libraries share. Every function catches
// everything: no exception crosses the interface.
#include <algorithm>
#include <exception>
#include <string>

#include "context.h"
#include "growth.h"
#include "keep_budget.h"
#include "offered.h"

namespace recoup {
namespace {

// A function's body, whose exceptions become a status.
template <class Body>
recoup_status guarded(char* error, size_t size, Body body) noexcept {
  try {
    try {
      return body();
    } catch (const std::exception& e) {
      return fail(RECOUP_INTERNAL, std::string("recoup: ") + e.what(), error, size);
    }
  } catch (...) {
    return fail(RECOUP_INTERNAL, "recoup: unknown error", error, size);
  }
}

// Why the host's LibTorch is not the one this library was built with, or empty.
std::string torch_mismatch(const recoup_host_v1& host) {
  const std::string mine = kEngine.torch_version != nullptr ? kEngine.torch_version : "";
  const std::string theirs = host.torch_version != nullptr ? host.torch_version : "";
  if (mine.empty() || mine == theirs) return {};
  return "recoup: this plugin was built with LibTorch " + mine + ", the host " +
         (host.torch_version == nullptr ? std::string("without it") : "with " + theirs) +
         "; build it for the host's: cmake -S RECOUP -B build -DCMAKE_PREFIX_PATH=FOLDER "
         "(its folder \"torch\"), or load librecoup_policy.so, which needs no LibTorch";
}

Decision decision_for(const Context& plugin, const LayerInfo& layer) {
  Decision decision;
  if (plugin.profiles()) {
    // Everything goes through checkpoint() to be measured, nothing is recomputed.
    decision.profile = 1;
    for (const auto& module : kModules) {
      const bool has_it = module.layers == RECOUP_EVERY_LAYER ||
                          (module.layers == RECOUP_MOE_LAYER) == layer.is_moe;
      if (has_it) decision.recompute_modules |= plugin.host_modules & module.bit;
    }
    decision.recompute_mlp = (decision.recompute_modules & RECOUP_MLP) != 0;
    return decision;
  }
  const auto& policy = plugin.policy;
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    if (policy.recomputes(static_cast<Module>(m), layer)) {
      decision.recompute_modules |= kModules[m].bit;
    }
  }
  decision.recompute_mlp = (decision.recompute_modules & RECOUP_MLP) != 0;
  decision.full_group = policy.full_group(layer);
  decision.mlp_activation_only =
      decision.recompute_mlp != 0 && policy.mlp_level(layer) == MlpLevel::kActivation;
  decision.distribute_saved_activations = policy.config().distribute_saved_activations;
  return decision;
}

recoup_status layer_hook(void* opaque, recoup_layer_v1* layer, char* error, size_t size) {
  return guarded(error, size, [&] {
    const PinnedContext plugin(contexts(), opaque);
    if (!plugin) {
      return fail(RECOUP_INVALID_ARGUMENT, "recoup: the layer hook: " + contexts().problem(opaque),
                  error, size);
    }
    if (layer == nullptr || layer->struct_size < RECOUP_LAYER_V1_MIN) {
      return fail(
          RECOUP_INVALID_ARGUMENT,
          "recoup: the layer hook needs a layer whose struct_size is its sizeof, at least " +
              std::to_string(RECOUP_LAYER_V1_MIN) + " bytes",
          error, size);
    }
    LayerInfo asked{layer->layer_number, layer->is_moe != 0, layer->stage_offset};
    asked.mlp_number = RECOUP_GET(layer, mlp_number);
    if (asked.number < 1 || asked.stage_offset < 0 || asked.number <= asked.stage_offset) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: layer number " + std::to_string(asked.number) + " with " +
                      std::to_string(asked.stage_offset) +
                      " layers before the stage; layers are numbered globally from 1",
                  error, size);
    }
    if (asked.mlp_number < 0 || asked.mlp_number > asked.number) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: layer " + std::to_string(asked.number) + " with mlp_number " +
                      std::to_string(asked.mlp_number) +
                      "; MLPs are counted from 1, over all pipeline stages",
                  error, size);
    }
    if (const auto why = plugin->policy.problem_with(asked); !why.empty()) {
      return fail(RECOUP_BAD_CONFIG, why, error, size);
    }
    const auto decision = decision_for(*plugin, asked);
    const bool query = (RECOUP_GET(layer, flags) & RECOUP_LAYER_QUERY) != 0;
    void* handle = nullptr;
    if (!query) {
      if (!decision.profile) {
        plugin->say(RECOUP_LOG_INFO, plugin->policy.describe(asked));
        plugin->say(plugin->construction->add(asked));
      }
      // A host of version 1.0 has no other way to ask again than to give the layer again.
      if (RECOUP_HAS(recoup_layer_v1, layer, handle)) {
        std::string warning;
        handle = plugin->layers->add(asked.number, decision, &warning);
        if (!warning.empty()) plugin->say(RECOUP_LOG_WARNING, warning);
      }
    }
    decision.write_to(*layer);
    RECOUP_SET(layer, handle, handle);
    return RECOUP_OK;
  });
}

recoup_status decide(void* opaque, recoup_layer_v1* layer, char* error, size_t size) {
  return guarded(error, size, [&] {
    const PinnedContext plugin(contexts(), opaque);
    if (!plugin) {
      return fail(RECOUP_INVALID_ARGUMENT, "recoup: decide: " + contexts().problem(opaque), error,
                  size);
    }
    std::int64_t number = 0;
    auto decision = layer != nullptr ? plugin->layers->decide(RECOUP_GET(layer, handle), &number)
                                     : std::nullopt;
    if (!decision) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: decide needs a layer with the handle that the layer hook put into it",
                  error, size);
    }
    if (plugin->controller != nullptr) {
      if (!kEngine.training()) plugin->controller->evaluates();
      decision = plugin->controller->decide(*decision, number, RECOUP_GET(layer, microbatch));
    }
    decision->write_to(*layer);
    return RECOUP_OK;
  });
}

recoup_status step_end(void* opaque, const recoup_step_v1* step, char* error, size_t size) {
  return guarded(error, size, [&] {
    const PinnedContext plugin(contexts(), opaque);
    if (!plugin) {
      return fail(RECOUP_INVALID_ARGUMENT, "recoup: step_end: " + contexts().problem(opaque), error,
                  size);
    }
    if (step == nullptr || step->struct_size < sizeof(recoup_step_v1)) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: step_end needs a step whose struct_size is its sizeof, at least " +
                      std::to_string(sizeof(recoup_step_v1)) + " bytes",
                  error, size);
    }
    if (plugin->controller == nullptr) return RECOUP_OK;
    const bool done = plugin->controller->step_end((step->flags & RECOUP_STEP_FAILED) != 0,
                                                   (step->flags & RECOUP_STEP_SKIPPED) != 0);
    return done ? RECOUP_OK
                : fail(RECOUP_CALLBACK_FAILED,
                       "recoup: step_end: the host's memory or agree failed", error, size);
  });
}

Result<Config> configuration(const Settings& settings) {
  if (settings.config_yaml) return parse_config(*settings.config_yaml, "options");
  if (!settings.config_path.empty()) return load_config(settings.config_path);
  return Config();
}

recoup_status init(void** out, const recoup_host_v1* host, char* error, size_t size) {
  return guarded(error, size, [&] {
    if (out == nullptr) {
      return fail(RECOUP_INVALID_ARGUMENT, "recoup: init needs *plugin", error, size);
    }
    *out = nullptr;
    if (host == nullptr || host->struct_size < RECOUP_HOST_V1_MIN ||
        host->register_layer_hook == nullptr) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: init needs a host whose struct_size is its sizeof, at least " +
                      std::to_string(RECOUP_HOST_V1_MIN) + " bytes, with register_layer_hook",
                  error, size);
    }
    if (const auto why = torch_mismatch(*host); !why.empty()) {
      return fail(RECOUP_INCOMPATIBLE, why, error, size);
    }
    const auto settings = Settings::read(*host);
    if (!settings.ok()) return fail(RECOUP_BAD_CONFIG, settings.error().text, error, size);
    auto config = configuration(settings.value());
    if (!config.ok()) return fail(RECOUP_BAD_CONFIG, config.error().text, error, size);
    if (const auto why = settings.value().put_budget_into(config.value()); !why.empty()) {
      return fail(RECOUP_BAD_CONFIG, why, error, size);
    }
    const auto policy = Policy::create(config.value(), settings.value().override, model_of(*host));
    if (!policy.ok()) return fail(RECOUP_BAD_CONFIG, policy.error().text, error, size);

    std::unique_ptr<Context> context(
        new Context{policy.value(), host->modules, host->rank == 0, host->log, host->log_user});
    if (kEngine.record != nullptr) {
      auto recorder = kEngine.record(settings.value(), host->rank);
      if (!recorder.ok()) return fail(RECOUP_BAD_CONFIG, recorder.error().text, error, size);
      context->recorder = recorder.value();
    }
    context->check = settings.value().check;
    if (config.value().memory_budget && !context->profiles()) {
      const auto why = keep_budget(*context, *host, settings.value());
      if (!why.empty()) return fail(RECOUP_BAD_CONFIG, why, error, size);
    }
    const auto& path = settings.value().config_path;
    if (!path.empty()) {
      const std::string name =
          host->name != nullptr && *host->name != '\0' ? std::string(" of ") + host->name : "";
      context->say(RECOUP_LOG_INFO, "recoup " RECOUP_VERSION ": options" + name + " from " + path);
    }
    for (const auto& notice : settings.value().notices(kEngine.record != nullptr)) {
      context->say(RECOUP_LOG_WARNING, "recoup: " + notice);
    }
    for (const auto& notice : context->policy.notices()) {
      context->say(RECOUP_LOG_WARNING, "recoup: " + notice);
    }
    if (!context->profiles()) {
      context->say(RECOUP_LOG_INFO, "recoup: " + context->policy.summary());
    }
    if (const auto why = unconfirmed(*host, config.value()); !why.empty()) {
      context->say(RECOUP_LOG_WARNING, why);
    }
    void* const handle = contexts().open(std::move(context));
    if (handle == nullptr) {
      return fail(RECOUP_INTERNAL,
                  "recoup: " + std::to_string(Handles<Context>::kSlots) +
                      " plugins are open already; close those that are no longer used",
                  error, size);
    }
    const auto status = host->register_layer_hook(host->host, &layer_hook, handle);
    if (status != RECOUP_OK) {
      contexts().close(handle);
      return fail(status, "recoup: the host refused the hook", error, size);
    }
    *out = handle;
    return RECOUP_OK;
  });
}

recoup_status close(void* opaque, char* error, size_t size) {
  if (opaque == nullptr) return RECOUP_OK;
  return guarded(error, size, [&] {
    const PinnedContext plugin(contexts(), opaque);
    if (!contexts().close(opaque)) {
      return fail(RECOUP_INVALID_ARGUMENT, "recoup: close: " + contexts().problem(opaque), error,
                  size);
    }
    if (plugin->controller != nullptr) plugin->controller->close();
    // The files first: a log that throws costs no measurement.
    const auto why = plugin->recorder ? plugin->recorder->write() : std::string();
    plugin->say(plugin->construction->finish());
    if (kEngine.checkpoint != nullptr) {
      const auto missing = plugin->layers->never_ran();
      if (!missing.empty()) plugin->say(RECOUP_LOG_WARNING, missing);
    }
    if (plugin->recorder != nullptr) {
      const auto remark = plugin->recorder->remark();
      if (!remark.empty()) plugin->say(RECOUP_LOG_WARNING, "recoup: " + remark);
    }
    return why.empty() ? RECOUP_OK : fail(RECOUP_INTERNAL, "recoup: " + why, error, size);
  });
}

void finalize(void* plugin) {
  char error[1024] = "";
  if (close(plugin, error, sizeof(error)) != RECOUP_OK) std::fprintf(stderr, "%s\n", error);
}

const recoup_module_info_v1* module(size_t index) {
  static const recoup_module_info_v1 modules[] = {
#define RECOUP_MODULE_INFO(c_name, cc_name, name, bit, layers, meaning) \
  {sizeof(recoup_module_info_v1), name, meaning, RECOUP_##c_name, layers},
      RECOUP_MODULES(RECOUP_MODULE_INFO)
#undef RECOUP_MODULE_INFO
  };
  return index < kModuleCount ? &modules[index] : nullptr;
}

int32_t configured(char* what, size_t size) {
  std::string names;
  guarded(what, size, [&] {
    for (const auto& name : Settings::outside()) names += (names.empty() ? "" : ", ") + name;
    return fail(RECOUP_OK, names, what, size);
  });
  return names.empty() ? 0 : 1;
}

}  // namespace
}  // namespace recoup

extern "C" __attribute__((visibility("default"))) const recoup_plugin_v1* recoup_plugin_v1_entry(
    uint32_t abi_version) __asm__(RECOUP_ENTRY_SYMBOL);

const recoup_plugin_v1* recoup_plugin_v1_entry(uint32_t abi_version) {
  static const recoup_plugin_v1 plugin = {sizeof(recoup_plugin_v1),
                                          RECOUP_ABI_VERSION,
                                          "recoup",
                                          RECOUP_VERSION,
                                          recoup::kEngine.torch_version,
                                          &recoup::init,
                                          recoup::kEngine.checkpoint,
                                          &recoup::finalize,
                                          RECOUP_ABI_MINOR,
                                          &recoup::module,
                                          &recoup::configured,
                                          &recoup::decide,
                                          &recoup::close,
                                          &recoup::step_end};
  return abi_version == RECOUP_ABI_VERSION ? &plugin : nullptr;
}
