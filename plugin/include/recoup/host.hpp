// The host's side of recoup's plugin interface, header-only: loads a plugin and turns plugin.h into
// a few C++ calls. Needs C++17 and libdl; knows no tensor library. With LibTorch:
//
//   recoup::HostOptions options{"my_trainer", TORCH_VERSION};
//   options.num_layers = 24;
//   recoup::Host recoup("/path/to/librecoup.so", options);      // throws recoup::LoadError
//
//   recoup::Layer layer = recoup.layer({number});               // in a layer's constructor: a
//   member x = x + layer.mlp(mlp, norm(x));                            // in its forward; mlp:
//   TORCH_MODULE
//
// What goes through a checkpoint runs again in backward, so it owns what it needs: pass a module's
// holder or shared pointer as it is, or a lambda that captures them by value
// ([mlp = mlp](const at::Tensor& h) mutable { return mlp->forward(h); }), never [&] or [this].
#pragma once

#if __cplusplus < 201703L
#error "recoup/host.hpp needs C++17: compile with -std=c++17 or later (CMake: CXX_STANDARD 17)"
#endif

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "recoup/load.h"
#include "recoup/plugin.h"
#include "recoup/region.hpp"

namespace recoup {

// The plugin cannot be used; what() says why and what to do.
class LoadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct HostOptions {
  std::string name;                          // for messages
  std::optional<std::string> torch_version;  // TORCH_VERSION, or none
  std::string config_path;                   // empty: RECOUP_CONFIG or none
  std::string config_yaml;                   // the options themselves, in place of a file
  int rank = 0;                              // global; only rank 0 logs
  std::int64_t num_layers = 0;               // in the whole model; 0: unknown, and then no option
                                             // may count from the last layer
  std::int64_t stage_num_layers = 0;         // on this pipeline stage; 0: unknown
  std::uint32_t modules = RECOUP_MLP;        // what this host can recompute
  std::function<void(recoup_log_level, const std::string&)> log;  // empty: standard error
  std::uint64_t capabilities = 0;  // what else it can, bits of recoup_capability
  std::int64_t num_mlps = 0;       // dense MLPs in the whole model; 0: unknown
};

namespace detail {

// A loaded plugin and its context, shared by all layers made from it.
struct Loaded {
  const recoup_plugin_v1* api = nullptr;
  void* plugin = nullptr;
  recoup_layer_hook hook = nullptr;
  void* hook_plugin = nullptr;
  std::function<void(recoup_log_level, const std::string&)> log;
  bool logs = false;  // rank 0
  std::atomic<bool> said_one_part{false};

  void say(recoup_log_level level, const std::string& line) const {
    if (!logs) return;
    if (log) {
      log(level, line);
    } else {
      std::fprintf(stderr, "%s%s\n", level == RECOUP_LOG_WARNING ? "WARNING: " : "", line.c_str());
    }
  }
  // Why it could not be closed in good order, or empty.
  std::string close() {
    char error[1024] = "";
    void* const closed = std::exchange(plugin, nullptr);
    if (closed == nullptr) return {};
    if (!RECOUP_HAS(recoup_plugin_v1, api, close)) {
      api->finalize(closed);
    } else if (api->close(closed, error, sizeof(error)) != RECOUP_OK) {
      return error;
    }
    return {};
  }
  ~Loaded() {
    try {
      if (const auto why = close(); !why.empty()) say(RECOUP_LOG_WARNING, why);
    } catch (...) {  // the log's own
    }
  }
};

struct LayerState {
  std::shared_ptr<Loaded> loaded;
  recoup_layer_v1 layer{};  // as the hook filled it
  std::shared_ptr<void> keeper;
};

// The module that a part is called after, as a bit; 0 for any other part.
inline std::uint64_t module_of(const std::string& part) {
#define RECOUP_IS_MODULE(c_name, cc_name, name, bit, layers, meaning) \
  if (part == (name)) return RECOUP_##c_name;
  RECOUP_MODULES(RECOUP_IS_MODULE)
#undef RECOUP_IS_MODULE
  return 0;
}

}  // namespace detail

// One layer, whose decisions are asked for anew in each forward. Copies are the same layer; a
// default-constructed one recomputes nothing. Throws std::runtime_error once its Host is closed.
//
// `input` and what a function gives may be one tensor, or a std::vector, std::pair or std::tuple of
// tensors; a pair or tuple is handed on whole or, where the function takes several, apart.
class Layer {
 public:
  Layer() = default;

  std::int64_t number() const { return state_ ? state_->layer.layer_number : 0; }
  bool recompute_mlp() const { return ask().recompute_mlp != 0; }
  bool mlp_activation_only() const { return ask().mlp_activation_only != 0; }
  bool recomputes(recoup_module module) const { return (ask().recompute_modules & module) != 0; }
  std::int64_t full_group() const { return ask().full_group; }
  bool distribute_saved_activations() const { return ask().distribute_saved_activations != 0; }

  // The MLP's forward, checkpointed where recoup decided so.
  template <class F, class In>
  auto mlp(F forward, const In& input) const {
    auto run = detail::owned(std::move(forward));
    const auto decision = ask();
    if (decision.recompute_mlp == 0) return detail::call(run, input);
    if (decision.mlp_activation_only != 0 && !state_->loaded->said_one_part.exchange(true)) {
      state_->loaded->say(
          RECOUP_LOG_WARNING,
          "recoup: layer " + std::to_string(number()) +
              ": its MLP comes as one function, so that level activation recomputes all of it; "
              "this host offers RECOUP_MLP_ACTIVATION and must pass fc1 and what follows it apart");
    }
    return region("mlp", RECOUP_MLP, std::move(run), input);
  }

  // The same in two parts, for hosts that offer RECOUP_MLP_ACTIVATION: fc1 (for SwiGLU the gate and
  // up projections, as a pair), and all that follows it (activation, dropout, fc2).
  template <class F, class G, class In>
  auto mlp(F fc1, G rest, const In& input) const {
    auto first = detail::owned(std::move(fc1));
    auto second = detail::owned(std::move(rest));
    const auto decision = ask();
    if (decision.recompute_mlp == 0) return detail::call(second, detail::call(first, input));
    if (decision.profile != 0) {
      return region("mlp.rest", RECOUP_MLP, std::move(second),
                    region("mlp.fc1", RECOUP_MLP, std::move(first), input));
    }
    if (decision.mlp_activation_only != 0) {
      // fc1's output is each tensor-parallel rank's own: nothing to distribute.
      return region("mlp", RECOUP_MLP, std::move(second), detail::call(first, input), false);
    }
    return region(
        "mlp", RECOUP_MLP,
        [first = std::move(first), second = std::move(second)](const In& x) mutable {
          return detail::call(second, detail::call(first, x));
        },
        input);
  }

  // Any other module: checkpointed where recoup decided so, else run as it is.
  template <class F, class In>
  auto run(recoup_module module, const char* part, F forward, const In& input) const {
    auto run = detail::owned(std::move(forward));
    return recomputes(module) ? region(part, module, std::move(run), input)
                              : detail::call(run, input);
  }

  // Checkpoints any part of the layer, whatever was decided. `part` names it in errors; a part that
  // is a module is called as the module is.
  template <class F, class In>
  auto checkpoint(const std::string& part, F forward, const In& input) const {
    return region(part, detail::module_of(part), detail::owned(std::move(forward)), input);
  }

  // The same with the list type given. Throws what forward throws.
  template <class Tensors>
  Tensors checkpoint_all(const std::string& part, detail::Function<Tensors> forward,
                         const Tensors& inputs) const {
    return checkpoint_list(part, detail::module_of(part), std::move(forward), inputs, true);
  }

  // For distribute_saved_activations (RECOUP_CAN_DISTRIBUTE): how this layer's checkpoints keep
  // their inputs. keep takes a checkpoint's inputs and returns what to hold until backward; restore
  // takes that and returns the inputs' values. Does nothing where the option is off.
  template <class Tensors>
  void set_input_keeper(detail::Function<Tensors> keep, detail::Function<Tensors> restore) {
    if (ask().distribute_saved_activations == 0) return;
    state_->keeper = std::make_shared<detail::Region<Tensors>>(
        detail::Region<Tensors>{nullptr, std::move(keep), std::move(restore)});
  }

 private:
  friend class Host;

  // The decisions for the forward that begins now.
  recoup_layer_v1 ask() const {
    if (state_ == nullptr) return {};
    auto now = state_->layer;
    if (now.handle != nullptr) {  // a library of version 1.0 gives none: the hook's decision stays
      const auto& loaded = *state_->loaded;
      char error[512] = "";
      if (loaded.api->decide(loaded.plugin, &now, error, sizeof(error)) != RECOUP_OK) {
        throw std::runtime_error(error);
      }
    }
    return now;
  }

  template <class F, class In>
  auto region(const std::string& part, std::uint64_t modules, F run, const In& input,
              bool may_distribute = true) const {
    using Out = std::decay_t<decltype(detail::call(run, input))>;
    using Tensor = typename detail::TensorOf<In>::type;
    return detail::unpack<Out>(checkpoint_list(part, modules,
                                               detail::listed<In, Out>(std::move(run)),
                                               detail::pack<Tensor, In>(input), may_distribute));
  }

  template <class Tensors>
  Tensors checkpoint_list(const std::string& part, std::uint64_t modules,
                          detail::Function<Tensors> forward, const Tensors& inputs,
                          bool may_distribute) const {
    if (state_ == nullptr || state_->loaded == nullptr ||
        state_->loaded->api->checkpoint == nullptr) {
      throw LoadError("recoup: this plugin has no checkpoint engine; load librecoup.so");
    }
    using Region = detail::Region<Tensors>;
    const auto& loaded = *state_->loaded;
    const std::string name = "layer " + std::to_string(number()) + " " + part;
    const auto* keeper =
        may_distribute ? static_cast<const Region*>(state_->keeper.get()) : nullptr;
    recoup_region_v1 region{};
    region.struct_size = sizeof(region);
    region.name = name.c_str();
    region.layer_number = number();
    region.part = part.c_str();
    region.modules = modules;
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
    const auto status = loaded.api->checkpoint(loaded.plugin, &region, &inputs, &outputs,
                                               &exception, error, sizeof(error));
    if (exception) std::rethrow_exception(exception);
    if (status != RECOUP_OK) throw std::runtime_error(error);
    return outputs;
  }

  std::shared_ptr<detail::LayerState> state_;
};

class Host {
 public:
  struct LayerInfo {
    std::int64_t number;  // 1-indexed, global
    bool is_moe = false;
    std::int64_t stage_offset = 0;
    std::int64_t mlp_number = 0;  // among the model's dense MLPs, 1-indexed; 0: unknown, or MoE
  };

  // No plugin: every layer recomputes nothing.
  Host() = default;

  // Loads the library at `path` and starts it.
  Host(const std::string& path, const HostOptions& options)
      : Host(path, open(path, options.torch_version), options) {}

  // Starts a plugin that is already in the process, such as a statically linked one.
  Host(const recoup_plugin_v1* plugin, const HostOptions& options)
      : Host("the plugin", plugin, options) {}

  // What outside the host configures recoup, as the library at `path` sees it; empty: nothing.
  static std::string configured(const std::string& path) {
    const auto* api = open(path, std::nullopt);
    if (!RECOUP_HAS(recoup_plugin_v1, api, configured)) return "unknown (contract 1.0)";
    char what[1024] = "";
    return api->configured(what, sizeof(what)) != 0 ? what : "";
  }

  // Calls the plugin's layer-construction hook. Throws std::invalid_argument for a number that no
  // layer has.
  Layer layer(const LayerInfo& info) const {
    Layer layer;
    layer.state_ = std::make_shared<detail::LayerState>();
    auto& decision = layer.state_->layer;
    decision.struct_size = sizeof(decision);
    decision.layer_number = info.number;
    decision.is_moe = info.is_moe ? 1 : 0;
    decision.stage_offset = info.stage_offset;
    decision.mlp_number = info.mlp_number;
    if (loaded_ == nullptr) return layer;
    char error[1024] = "";
    if (loaded_->hook(loaded_->hook_plugin, &decision, error, sizeof(error)) != RECOUP_OK) {
      throw std::invalid_argument(error);
    }
    layer.state_->loaded = loaded_;
    return layer;
  }

  // Ends the plugin once no layer is used any more; without it the last Layer's end does. Throws
  // std::runtime_error where a profile or trace could not be written.
  void close() {
    if (loaded_ == nullptr) return;
    if (const auto why = loaded_->close(); !why.empty()) throw std::runtime_error(why);
  }

 private:
  Host(const std::string& path, const recoup_plugin_v1* api, const HostOptions& options)
      : loaded_(std::make_shared<detail::Loaded>()) {
    start(path, api, options);
  }

  static const recoup_plugin_v1* open(const std::string& path,
                                      const std::optional<std::string>& torch_version) {
    char error[2048] = "";
    const auto* api = recoup_open(path.c_str(), torch_version ? torch_version->c_str() : nullptr,
                                  error, sizeof(error));
    if (api == nullptr) throw LoadError(error);
    return api;
  }

  void start(const std::string& path, const recoup_plugin_v1* api, const HostOptions& options) {
    loaded_->api = api;
    loaded_->log = options.log;
    loaded_->logs = options.rank == 0;
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
    host.capabilities = options.capabilities;
    host.num_mlps = options.num_mlps;
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
      throw LoadError("recoup: " + path +
                      " registered no layer-construction hook; build the plugin and the host from "
                      "the same recoup");
    }
  }

  std::shared_ptr<detail::Loaded> loaded_;
};

}  // namespace recoup
