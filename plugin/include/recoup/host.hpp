// The host's side of recoup's plugin interface, header-only: loads a plugin and turns plugin.h into
// a few C++ calls. Needs C++17 and libdl; knows no tensor library.
//
//   recoup::Host recoup("librecoup.so", {"my_trainer", TORCH_VERSION});   // throws
//   recoup::LoadError recoup::Layer layer = recoup.layer({number, is_moe});                 // in
//   the layer's constructor x = x + layer.mlp([&](const at::Tensor& h) { return mlp->forward(h); },
//   norm(x));   // in forward
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "recoup/plugin.h"

namespace recoup {

// The plugin cannot be used; what() says why and what to do.
class LoadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct HostOptions {
  std::string name;
  std::optional<std::string> torch_version;  // TORCH_VERSION, or none
  std::string config_path;                   // empty: RECOUP_CONFIG or none
  std::string config_yaml;                   // the options themselves, in place of a file
  int rank = 0;
  std::int64_t num_layers = 0;
  std::int64_t stage_num_layers = 0;
  std::uint32_t modules = RECOUP_MLP;                             // what this host can recompute
  std::function<void(recoup_log_level, const std::string&)> log;  // empty: standard error
};

namespace detail {

// A loaded plugin and its context, shared by all layers made from it.
struct Loaded {
  const recoup_plugin_v1* api = nullptr;
  void* plugin = nullptr;
  recoup_layer_hook hook = nullptr;
  void* hook_plugin = nullptr;
  std::function<void(recoup_log_level, const std::string&)> log;
  ~Loaded() {
    if (plugin != nullptr) api->finalize(plugin);
  }
};

template <class Tensors>
using Function = std::function<Tensors(const Tensors&)>;

// A region's functions behind the C interface.
template <class Tensors>
struct Region {
  Function<Tensors> forward, keep, restore;

  template <Function<Tensors> Region::*function>
  static std::int32_t call(void* user, const void* in, void* out, void* exception) noexcept {
    try {
      *static_cast<Tensors*>(out) =
          (static_cast<Region*>(user)->*function)(*static_cast<const Tensors*>(in));
      return 0;
    } catch (...) {
      *static_cast<std::exception_ptr*>(exception) = std::current_exception();
      return 1;
    }
  }
  static void release(void* user) noexcept { delete static_cast<Region*>(user); }
};

}  // namespace detail

// What recoup decided for one layer. Copyable; the layer keeps it. A default-constructed one
// recomputes nothing.
class Layer {
 public:
  Layer() = default;

  std::int64_t number() const { return decision_.layer_number; }
  bool recompute_mlp() const { return decision_.recompute_mlp != 0; }
  bool mlp_activation_only() const { return decision_.mlp_activation_only != 0; }
  bool recomputes(recoup_module module) const {
    return (decision_.recompute_modules & module) != 0;
  }
  std::int64_t full_group() const { return decision_.full_group; }

  // The MLP's forward: one tensor in, one out; checkpointed where recoup decided so. `forward` is
  // kept until backward: it must own, or outlive, what it refers to.
  template <class Tensor, class F>
  Tensor mlp(F forward, const Tensor& input) const {
    if (!recompute_mlp()) return forward(input);
    return checkpoint("mlp", std::move(forward), input);
  }

  // The same in two parts, for hosts that offer RECOUP_MLP_ACTIVATION: fc1, and all that follows it
  // (activation, dropout, fc2).
  template <class Tensor, class F, class G>
  Tensor mlp(F fc1, G rest, const Tensor& input) const {
    if (!recompute_mlp()) return rest(fc1(input));
    if (decision_.profile != 0) {
      return checkpoint("mlp.rest", std::move(rest), checkpoint("mlp.fc1", std::move(fc1), input));
    }
    if (mlp_activation_only()) return checkpoint("mlp", std::move(rest), fc1(input));
    return checkpoint(
        "mlp",
        [fc1 = std::move(fc1), rest = std::move(rest)](const Tensor& x) mutable {
          return rest(fc1(x));
        },
        input);
  }

  // Checkpoints any part of the layer; `part` names it in errors.
  template <class Tensor, class F>
  Tensor checkpoint(const std::string& part, F forward, const Tensor& input) const {
    using Tensors = std::vector<Tensor>;
    return checkpoint_all<Tensors>(
        part,
        [forward = std::move(forward)](const Tensors& in) mutable -> Tensors {
          return {forward(in[0])};
        },
        Tensors{input})[0];
  }

  // For distribute_saved_activations: how this layer's checkpoints keep their inputs. keep takes a
  // checkpoint's inputs and returns what to hold until backward; restore takes that and returns the
  // inputs' values. Without it the option does nothing.
  template <class Tensors>
  void set_input_keeper(detail::Function<Tensors> keep, detail::Function<Tensors> restore) {
    if (decision_.distribute_saved_activations == 0) return;
    keeper_ = std::make_shared<detail::Region<Tensors>>(
        detail::Region<Tensors>{nullptr, std::move(keep), std::move(restore)});
  }

  // The same for several inputs and outputs. Throws what forward throws.
  template <class Tensors>
  Tensors checkpoint_all(const std::string& part, detail::Function<Tensors> forward,
                         const Tensors& inputs) const {
    if (loaded_ == nullptr || loaded_->api->checkpoint == nullptr) {
      throw LoadError("recoup: this plugin has no checkpoint engine; load librecoup.so");
    }
    using Region = detail::Region<Tensors>;
    const std::string name = "layer " + std::to_string(decision_.layer_number) + " " + part;
    recoup_region_v1 region{};
    region.struct_size = sizeof(region);
    region.name = name.c_str();
    const auto* keeper = static_cast<const Region*>(keeper_.get());
    region.user = new Region{std::move(forward), keeper ? keeper->keep : nullptr,
                             keeper ? keeper->restore : nullptr};
    region.forward = &Region::template call<&Region::forward>;
    region.release = &Region::release;
    if (keeper != nullptr) {
      region.keep = &Region::template call<&Region::keep>;
      region.restore = &Region::template call<&Region::restore>;
    }
    Tensors outputs;
    std::exception_ptr exception;
    char error[1024] = "";
    const auto status = loaded_->api->checkpoint(loaded_->plugin, &region, &inputs, &outputs,
                                                 &exception, error, sizeof(error));
    if (exception) std::rethrow_exception(exception);
    if (status != RECOUP_OK) throw std::runtime_error(error);
    return outputs;
  }

 private:
  friend class Host;
  std::shared_ptr<detail::Loaded> loaded_;
  recoup_layer_v1 decision_{};
  std::shared_ptr<void> keeper_;
};

class Host {
 public:
  struct LayerInfo {
    std::int64_t number;  // 1-indexed, global
    bool is_moe = false;
    std::int64_t stage_offset = 0;
  };

  // No plugin: every layer recomputes nothing.
  Host() = default;

  // Loads the library at `path` and starts it.
  Host(const std::string& path, const HostOptions& options)
      : loaded_(std::make_shared<detail::Loaded>()) {
    // The library stays for the life of the process: autograd graphs may hold its objects.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr) {
      const char* why = dlerror();
      throw LoadError("recoup: cannot load the plugin " + path + ": " +
                      (why != nullptr ? why : "unknown error") +
                      "; give the path of librecoup.so, built with this host's LibTorch");
    }
    const auto entry = reinterpret_cast<recoup_entry>(dlsym(library, RECOUP_ENTRY_SYMBOL));
    if (entry == nullptr) {
      throw LoadError("recoup: " + path + " is no recoup plugin for this host: it has no symbol " +
                      RECOUP_ENTRY_SYMBOL + "; build the plugin and the host from the same recoup");
    }
    start(path, entry(RECOUP_ABI_VERSION), options);
  }

  // Starts a plugin that is already in the process, such as a statically linked one.
  Host(const recoup_plugin_v1* plugin, const HostOptions& options)
      : loaded_(std::make_shared<detail::Loaded>()) {
    start("the plugin", plugin, options);
  }

  // Calls the plugin's layer-construction hook.
  Layer layer(const LayerInfo& info) const {
    Layer layer;
    layer.decision_.struct_size = sizeof(layer.decision_);
    layer.decision_.layer_number = info.number;
    layer.decision_.is_moe = info.is_moe ? 1 : 0;
    layer.decision_.stage_offset = info.stage_offset;
    if (loaded_ == nullptr) return layer;
    char error[1024] = "";
    if (loaded_->hook(loaded_->hook_plugin, &layer.decision_, error, sizeof(error)) != RECOUP_OK) {
      throw std::invalid_argument(error);
    }
    layer.loaded_ = loaded_;
    return layer;
  }

 private:
  void start(const std::string& path, const recoup_plugin_v1* api, const HostOptions& options) {
    const std::string both = "; build the plugin and the host from the same recoup";
    if (api == nullptr) {
      throw LoadError("recoup: " + path + " does not speak ABI version " +
                      std::to_string(RECOUP_ABI_VERSION) + both);
    }
    if (api->abi_version != RECOUP_ABI_VERSION || api->struct_size < sizeof(recoup_plugin_v1)) {
      throw LoadError("recoup: " + path + " speaks ABI version " +
                      std::to_string(api->abi_version) + " with a struct of " +
                      std::to_string(api->struct_size) + " bytes, this host version " +
                      std::to_string(RECOUP_ABI_VERSION) + " with " +
                      std::to_string(sizeof(recoup_plugin_v1)) + both);
    }
    loaded_->api = api;
    loaded_->log = options.log;
    recoup_host_v1 host{};
    host.struct_size = sizeof(host);
    host.name = options.name.c_str();
    host.torch_version = options.torch_version ? options.torch_version->c_str() : nullptr;
    host.config_path = options.config_path.empty() ? nullptr : options.config_path.c_str();
    host.config_yaml = options.config_yaml.empty() ? nullptr : options.config_yaml.c_str();
    host.rank = options.rank;
    host.num_layers = options.num_layers;
    host.stage_num_layers = options.stage_num_layers;
    host.modules = options.modules;
    if (loaded_->log) {
      host.log = [](void* user, recoup_log_level level, const char* line) {
        static_cast<detail::Loaded*>(user)->log(level, line);
      };
      host.log_user = loaded_.get();
    }
    host.host = loaded_.get();
    host.register_layer_hook = [](void* self, recoup_layer_hook hook, void* plugin) {
      static_cast<detail::Loaded*>(self)->hook = hook;
      static_cast<detail::Loaded*>(self)->hook_plugin = plugin;
      return RECOUP_OK;
    };
    char error[2048] = "";
    if (api->init(&loaded_->plugin, &host, error, sizeof(error)) != RECOUP_OK) {
      throw LoadError(error);
    }
    if (loaded_->hook == nullptr) {
      throw LoadError("recoup: " + path + " registered no layer-construction hook" + both);
    }
  }

  std::shared_ptr<detail::Loaded> loaded_;
};

}  // namespace recoup
