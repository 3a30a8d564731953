// The host's side of recoup's plugin interface, header-only: loads a plugin and turns plugin.h into
// a few C++ calls. Needs C++17 and libdl; knows no tensor library. With LibTorch:
//
//   recoup::HostOptions options{"my_trainer", TORCH_VERSION};
//   options.num_layers = 24;
//   recoup::Host recoup("/path/to/librecoup.so", options);    // throws recoup::LoadError
//
//   recoup::Layer layer = recoup.layer({number});    // a member of each layer, made with it
//   x = x + layer.mlp(mlp, norm(x));                 // in its forward; mlp is a TORCH_MODULE
//
// What goes through a checkpoint runs again in backward, so it owns what it needs: pass a module's
// holder or shared pointer as it is, or a lambda that captures them by value
// ([mlp = mlp](const at::Tensor& h) mutable { return mlp->forward(h); }), never [&] or [this].
#pragma once

#if __cplusplus < 201703L
#error "recoup/host.hpp needs C++17: compile with -std=c++17 or later (CMake: CXX_STANDARD 17)"
#endif

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "recoup/layer.hpp"
#include "recoup/load.h"
#include "recoup/plugin.h"

namespace recoup {

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

  // For RECOUP_CAN_BUDGET: see recoup_host_v1 for each.
  struct Memory {
    std::int64_t bytes, peak;
  };
  std::function<Memory(bool restart)> memory;
  std::function<void(std::int64_t* values, std::size_t count)> agree;
  std::int64_t device_bytes = 0;
  std::int64_t pipeline_stages = 0, pipeline_stage = 0;
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
    if (!RECOUP_HAS(recoup_plugin_v1, api, configured) || api->configured == nullptr) {
      return "unknown (contract 1.0)";
    }
    char what[1024] = "";
    return api->configured(what, sizeof(what)) != 0 ? what : "";
  }

  // The plugin's version of recoup, such as "0.1.0"; empty without one.
  std::string version() const { return loaded_ != nullptr ? loaded_->api->version : ""; }

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

  // The forwards that begin from now on, in all threads, are of this microbatch of the optimizer
  // step; from 0. Where it is never called, a memory budget decides alike for all.
  void microbatch(std::int64_t number) {
    if (loaded_ != nullptr) loaded_->microbatch = number + 1;
  }

  // An optimizer step is over; see recoup_plugin_v1.step_end. `flags`: bits of recoup_step_flag.
  // Throws what `memory` or `agree` threw.
  void step_end(std::uint64_t flags = 0) {
    if (loaded_ == nullptr || !RECOUP_HAS(recoup_plugin_v1, loaded_->api, step_end) ||
        loaded_->api->step_end == nullptr) {
      return;
    }
    loaded_->microbatch = 0;
    const recoup_step_v1 step{sizeof(recoup_step_v1), flags};
    char error[512] = "";
    const auto status = loaded_->api->step_end(loaded_->plugin, &step, error, sizeof(error));
    if (auto thrown = loaded_->take_exception()) std::rethrow_exception(thrown);
    if (status != RECOUP_OK) throw std::runtime_error(error);
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
    host.device_bytes = options.device_bytes;
    host.pipeline_stages = options.pipeline_stages;
    host.pipeline_stage = options.pipeline_stage;
    if (options.memory) {
      loaded_->memory = [memory = options.memory](bool restart, std::int64_t* bytes,
                                                  std::int64_t* peak) {
        const auto m = memory(restart);
        *bytes = m.bytes;
        *peak = m.peak;
      };
      host.memory = [](void* self, std::int32_t restart, std::int64_t* bytes, std::int64_t* peak) {
        auto& loaded = *static_cast<detail::Loaded*>(self);
        return loaded.caught([&] { loaded.memory(restart != 0, bytes, peak); });
      };
    }
    if (options.agree) {
      loaded_->agree = options.agree;
      host.agree = [](void* self, std::int64_t* values, std::size_t count) {
        auto& loaded = *static_cast<detail::Loaded*>(self);
        return loaded.caught([&] { loaded.agree(values, count); });
      };
    }
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
