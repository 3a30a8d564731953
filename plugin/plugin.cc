// The plugin: policy behind the C interface and, where built with LibTorch (RECOUP_WITH_ENGINE),
// the checkpoint engine. Every function catches everything: no exception crosses the interface.
#include "recoup/plugin.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "recoup/policy/policy.h"

#ifdef RECOUP_WITH_ENGINE
#include <torch/version.h>

#include "observer.h"
#include "recoup/checkpoint/checkpoint.h"
#endif

namespace recoup {
namespace {

struct Plugin {
  Policy policy;
  std::uint32_t host_modules;
  bool logs;
  recoup_log_fn log;
  void* log_user;
#ifdef RECOUP_WITH_ENGINE
  std::shared_ptr<Observer> observer{};  // null: nobody asked
#endif

  void say(recoup_log_level level, const std::string& line) const {
    if (!logs) return;
    if (log != nullptr) {
      log(log_user, level, line.c_str());
    } else {
      std::fprintf(stderr, "%s%s\n", level == RECOUP_LOG_WARNING ? "WARNING: " : "", line.c_str());
    }
  }
};

recoup_status fail(recoup_status status, const std::string& text, char* error, std::size_t size) {
  if (error != nullptr && size > 0) {
    const auto length = std::min(text.size(), size - 1);
    std::memcpy(error, text.data(), length);
    error[length] = '\0';
  }
  return status;
}

// Whether a struct, as its owner compiled it, has `field`.
#define RECOUP_HAS(pointer, field) \
  ((pointer)->struct_size >=       \
   offsetof(std::decay_t<decltype(*(pointer))>, field) + sizeof((pointer)->field))

#ifdef RECOUP_WITH_ENGINE
constexpr const char* kTorchVersion = TORCH_VERSION;
#else
constexpr const char* kTorchVersion = nullptr;
#endif

// Why the host's LibTorch is not the one this library was built with, or empty.
std::string torch_mismatch([[maybe_unused]] const char* theirs) {
#ifdef RECOUP_WITH_ENGINE
  if (theirs != nullptr && std::strcmp(theirs, kTorchVersion) == 0) return {};
  return std::string("recoup: this plugin was built with LibTorch ") + kTorchVersion +
         ", the host " +
         (theirs == nullptr ? std::string("without it") : std::string("with ") + theirs) +
         "; rebuild one of them, or load librecoup_policy.so, which needs no LibTorch";
#else
  return {};
#endif
}

Model model_of(const recoup_host_v1& host) {
  Model model{host.num_layers, host.stage_num_layers, std::vector<std::string>(), false};
  for (std::size_t m = 0; m < kModuleCount; ++m) {
    if ((host.modules & kModules[m].bit) != 0) model.modules->push_back(kModules[m].name);
  }
  model.mlp_activation = (host.modules & RECOUP_MLP_ACTIVATION) != 0;
  return model;
}

recoup_status layer_hook(void* opaque, recoup_layer_v1* layer, char* error, size_t size) {
  try {
    if (opaque == nullptr || layer == nullptr || !RECOUP_HAS(layer, profile)) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: the layer hook needs a plugin and a layer of " +
                      std::to_string(sizeof(recoup_layer_v1)) + " bytes",
                  error, size);
    }
    const auto& plugin = *static_cast<const Plugin*>(opaque);
    if (layer->layer_number < 1 || layer->stage_offset < 0 ||
        layer->layer_number <= layer->stage_offset) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: layer number " + std::to_string(layer->layer_number) + " with " +
                      std::to_string(layer->stage_offset) +
                      " layers before the stage; layers are numbered globally from 1",
                  error, size);
    }
    const LayerInfo asked{layer->layer_number, layer->is_moe != 0, layer->stage_offset};
    layer->recompute_modules = 0;
    for (std::size_t m = 0; m < kModuleCount; ++m) {
      if (plugin.policy.recomputes(static_cast<Module>(m), asked)) {
        layer->recompute_modules |= kModules[m].bit;
      }
    }
    layer->recompute_mlp = (layer->recompute_modules & RECOUP_MLP) != 0;
    layer->full_group = plugin.policy.full_group(asked);
    layer->mlp_activation_only =
        layer->recompute_mlp && plugin.policy.mlp_level(asked) == MlpLevel::kActivation;
    layer->distribute_saved_activations = plugin.policy.config().distribute_saved_activations;
    layer->profile = 0;
#ifdef RECOUP_WITH_ENGINE
    if (plugin.observer && plugin.observer->profiles()) {
      // Everything goes through run_checkpoint() to be measured, nothing is recomputed.
      layer->profile = 1;
      layer->recompute_modules = plugin.host_modules & ~RECOUP_MLP_ACTIVATION;
      layer->recompute_mlp = layer->is_moe == 0 && (plugin.host_modules & RECOUP_MLP) != 0;
      layer->full_group = 0;
      layer->mlp_activation_only = layer->distribute_saved_activations = 0;
      return RECOUP_OK;
    }
#endif
    plugin.say(RECOUP_LOG_INFO, plugin.policy.describe(asked));
    return RECOUP_OK;
  } catch (const std::exception& e) {
    return fail(RECOUP_INTERNAL, std::string("recoup: ") + e.what(), error, size);
  } catch (...) {
    return fail(RECOUP_INTERNAL, "recoup: unknown error", error, size);
  }
}

recoup_status init(void** out, const recoup_host_v1* host, char* error, size_t size) {
  try {
    if (out == nullptr)
      return fail(RECOUP_INVALID_ARGUMENT, "recoup: init needs *plugin", error, size);
    *out = nullptr;
    if (host == nullptr || !RECOUP_HAS(host, host) || host->register_layer_hook == nullptr) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: init needs a host of at least " +
                      std::to_string(sizeof(recoup_host_v1)) + " bytes with register_layer_hook",
                  error, size);
    }
    if (const auto why = torch_mismatch(host->torch_version); !why.empty()) {
      return fail(RECOUP_INCOMPATIBLE, why, error, size);
    }
    auto override = Policy::find_override();
    if (!override.ok()) return fail(RECOUP_BAD_CONFIG, override.error().text, error, size);

    std::string path = host->config_path != nullptr ? host->config_path : "";
    const char* yaml = RECOUP_HAS(host, config_yaml) ? host->config_yaml : nullptr;
    if (!path.empty() && yaml != nullptr) {
      return fail(RECOUP_BAD_CONFIG,
                  path +
                      ": given beside options of the host's own; allowed is "
                      "one of the two",
                  error, size);
    }
    if (const char* variable = std::getenv("RECOUP_CONFIG"); path.empty() && yaml == nullptr) {
      if (variable != nullptr) path = variable;
    }
    auto config = yaml != nullptr ? parse_config(yaml, "options")
                  : !path.empty() ? load_config(path)
                                  : Result<Config>(Config());
    if (!config.ok()) return fail(RECOUP_BAD_CONFIG, config.error().text, error, size);

    auto policy = Policy::create(config.value(), override.value(), model_of(*host));
    if (!policy.ok()) return fail(RECOUP_BAD_CONFIG, policy.error().text, error, size);

    auto plugin = std::make_unique<Plugin>(
        Plugin{policy.value(), host->modules, host->rank == 0, host->log, host->log_user});
#ifdef RECOUP_WITH_ENGINE
    plugin->observer = Observer::from_environment(host->rank);
#endif
    if (!path.empty()) plugin->say(RECOUP_LOG_INFO, "recoup: options from " + path);
    for (const auto& notice : plugin->policy.notices()) {
      plugin->say(RECOUP_LOG_WARNING, "recoup: " + notice);
    }
    const auto status = host->register_layer_hook(host->host, &layer_hook, plugin.get());
    if (status != RECOUP_OK) return fail(status, "recoup: the host refused the hook", error, size);
    *out = plugin.release();
    return RECOUP_OK;
  } catch (const std::exception& e) {
    return fail(RECOUP_INTERNAL, std::string("recoup: ") + e.what(), error, size);
  } catch (...) {
    return fail(RECOUP_INTERNAL, "recoup: unknown error", error, size);
  }
}

void finalize(void* plugin) { delete static_cast<Plugin*>(plugin); }

#ifdef RECOUP_WITH_ENGINE

// A host's region; released when the last function made of it goes.
class HostRegion {
 public:
  using Function = decltype(recoup_region_v1::forward);

  explicit HostRegion(const recoup_region_v1& region) : user_(region.user, region.release) {}

  // One of the region's functions, as the engine calls it.
  Forward function(Function f) const {
    return [user = user_, f](const Tensors& in) {
      Tensors out;
      std::exception_ptr exception;
      if (f(user.get(), &in, &out, &exception) != 0) {
        // Among them StopRecompute, which ends a recompute: the engine's own exception comes back to
        // it.
        if (exception) std::rethrow_exception(exception);
        throw std::runtime_error("recoup: the host's function failed without an exception");
      }
      return out;
    };
  }

 private:
  std::shared_ptr<void> user_;
};

recoup_status run_checkpoint(void* opaque, const recoup_region_v1* region, const void* inputs,
                             void* outputs, void* exception, char* error, size_t size) {
  try {
    if (region == nullptr || !RECOUP_HAS(region, release) || region->forward == nullptr ||
        region->release == nullptr) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: checkpoint needs a region of at least " +
                      std::to_string(offsetof(recoup_region_v1, keep)) +
                      " bytes with forward and release",
                  error, size);
    }
    const HostRegion host(*region);
    if (opaque == nullptr || inputs == nullptr || outputs == nullptr || exception == nullptr) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: checkpoint needs plugin, inputs, outputs and exception", error, size);
    }
    const auto& plugin = *static_cast<const Plugin*>(opaque);
    const auto& in = *static_cast<const Tensors*>(inputs);
    auto& out = *static_cast<Tensors*>(outputs);
    const std::string name = region->name != nullptr ? region->name : "region";
    auto forward = host.function(region->forward);
    if (plugin.observer && plugin.observer->profiles()) {
      out = plugin.observer->measure(name, forward, in);
      return RECOUP_OK;
    }
    CheckpointOptions options;
    options.name = name;
    if (RECOUP_HAS(region, restore) && region->keep != nullptr && region->restore != nullptr) {
      options.pack_inputs = host.function(region->keep);
      options.unpack_inputs = host.function(region->restore);
    }
    if (plugin.observer) forward = plugin.observer->traced(name, std::move(forward));
    out = checkpoint(std::move(forward), in, options);
    return RECOUP_OK;
  } catch (...) {
    if (exception != nullptr) {
      *static_cast<std::exception_ptr*>(exception) = std::current_exception();
    }
    return fail(RECOUP_CALLBACK_FAILED, "recoup: the checkpointed forward failed", error, size);
  }
}
#else
constexpr decltype(recoup_plugin_v1::checkpoint) run_checkpoint = nullptr;
#endif

}  // namespace
}  // namespace recoup

extern "C" __attribute__((visibility("default"))) const recoup_plugin_v1* recoup_plugin_v1_entry(
    uint32_t abi_version) __asm__(RECOUP_ENTRY_SYMBOL);

const recoup_plugin_v1* recoup_plugin_v1_entry(uint32_t abi_version) {
  static const recoup_plugin_v1 plugin = {
      sizeof(recoup_plugin_v1), RECOUP_ABI_VERSION,    "recoup",
      RECOUP_VERSION,           recoup::kTorchVersion, &recoup::init,
      recoup::run_checkpoint,   &recoup::finalize};
  return abi_version == RECOUP_ABI_VERSION ? &plugin : nullptr;
}
