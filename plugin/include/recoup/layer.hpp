// One layer of a model as its host holds it (recoup::Layer), and the plugin behind it. Included by
// recoup/host.hpp, whose comment shows how it is used.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "recoup/plugin.h"
#include "recoup/region.hpp"

namespace recoup {

// The plugin cannot be used; what() says why and what to do.
class LoadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
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
  std::atomic<bool> closed{false}, said_one_part{false};
  std::atomic<std::int64_t> microbatch{0};  // from 1; 0: not told
  std::function<void(bool, std::int64_t*, std::int64_t*)> memory;
  std::function<void(std::int64_t*, std::size_t)> agree;

  // Runs a host's function behind the C interface: 0, or 1 where it threw, which is kept.
  template <class F>
  std::int32_t caught(F function) noexcept {
    try {
      function();
      return 0;
    } catch (...) {
      const std::lock_guard<std::mutex> guard(mutex);
      exception = std::current_exception();
      return 1;
    }
  }
  std::exception_ptr take_exception() {
    const std::lock_guard<std::mutex> guard(mutex);
    return std::exchange(exception, nullptr);
  }
  std::mutex mutex;
  std::exception_ptr exception;

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
    if (plugin == nullptr || closed.exchange(true)) return {};
    if (!RECOUP_HAS(recoup_plugin_v1, api, close) || api->close == nullptr) {
      api->finalize(plugin);
    } else if (api->close(plugin, error, sizeof(error)) != RECOUP_OK) {
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
    auto fc1_bytes = std::make_shared<detail::Fc1Bytes>();
    auto both = detail::then(detail::counted(std::move(first), fc1_bytes), std::move(second));
    fc1_bytes->held = 1;  // by then(), until the second has returned
    return region("mlp", RECOUP_MLP, std::move(both), input, true, fc1_bytes.get());
  }

  // The same in three parts: fc1, the activation (with what belongs to it, such as a dropout), and
  // the rest, which is never run again. So a recompute ends by returning where it otherwise ends by
  // an exception within fc2, which costs more than all else that a checkpoint of a small MLP does.
  template <class F, class A, class G, class In>
  auto mlp(F fc1, A activation, G rest, const In& input) const {
    auto first = detail::owned(std::move(fc1));
    auto second = detail::owned(std::move(activation));
    auto last = detail::owned(std::move(rest));
    const auto decision = ask();
    if (decision.recompute_mlp == 0) {
      return detail::call(last, detail::call(second, detail::call(first, input)));
    }
    if (decision.profile != 0) {
      return region("mlp.rest", RECOUP_MLP, detail::then(std::move(second), std::move(last)),
                    region("mlp.fc1", RECOUP_MLP, std::move(first), input));
    }
    if (decision.mlp_activation_only != 0) {
      return region_in_parts("mlp", RECOUP_MLP, std::move(second), std::move(last),
                             detail::call(first, input), false);
    }
    auto fc1_bytes = std::make_shared<detail::Fc1Bytes>();
    auto both = detail::then(detail::counted(std::move(first), fc1_bytes), std::move(second));
    return region_in_parts("mlp", RECOUP_MLP, std::move(both), std::move(last), input, true,
                           fc1_bytes.get());
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
        detail::Region<Tensors>{nullptr, std::move(keep), std::move(restore), nullptr});
  }

 private:
  friend class Host;

  // Null without a plugin.
  const detail::Loaded* opened() const {
    const auto* loaded = state_ != nullptr ? state_->loaded.get() : nullptr;
    if (loaded != nullptr && loaded->closed) {
      throw std::runtime_error("recoup: layer " + std::to_string(number()) +
                               ": its Host was closed; close it once no layer is used any more");
    }
    return loaded;
  }

  // The decisions for the forward that begins now.
  recoup_layer_v1 ask() const {
    if (state_ == nullptr) return {};
    auto now = state_->layer;
    const auto* loaded = opened();
    if (loaded != nullptr) now.microbatch = loaded->microbatch.load(std::memory_order_relaxed);
    // A library without decide() (version 1.0): what the hook said stays.
    if (loaded != nullptr && RECOUP_HAS(recoup_plugin_v1, loaded->api, decide) &&
        loaded->api->decide != nullptr) {
      char error[512] = "";
      if (loaded->api->decide(loaded->plugin, &now, error, sizeof(error)) != RECOUP_OK) {
        throw std::runtime_error(error);
      }
    }
    return now;
  }

  template <class F, class In>
  auto region(const std::string& part, std::uint64_t modules, F run, const In& input,
              bool may_distribute = true, const detail::Fc1Bytes* fc1_bytes = nullptr) const {
    using Out = std::decay_t<decltype(detail::call(run, input))>;
    using Tensor = typename detail::TensorOf<In>::type;
    return detail::unpack<Out>(checkpoint_list(
        part, modules, detail::listed<In, Out>(std::move(run)), detail::pack<Tensor, In>(input),
        may_distribute, detail::Function<std::vector<Tensor>>(), fc1_bytes));
  }

  template <class F, class G, class In>
  auto region_in_parts(const std::string& part, std::uint64_t modules, F run, G rest,
                       const In& input, bool may_distribute,
                       const detail::Fc1Bytes* fc1_bytes = nullptr) const {
    using Middle = std::decay_t<decltype(detail::call(run, input))>;
    using Out = std::decay_t<decltype(detail::call(rest, std::declval<const Middle&>()))>;
    using Tensor = typename detail::TensorOf<In>::type;
    return detail::unpack<Out>(checkpoint_list(
        part, modules, detail::listed<In, Middle>(std::move(run)), detail::pack<Tensor, In>(input),
        may_distribute,
        detail::Function<std::vector<Tensor>>(detail::listed<Middle, Out>(std::move(rest))),
        fc1_bytes));
  }

  // `rest`: see recoup_region_v1; null: the forward has one part.
  template <class Tensors>
  Tensors checkpoint_list(const std::string& part, std::uint64_t modules,
                          detail::Function<Tensors> forward, const Tensors& inputs,
                          bool may_distribute, detail::Function<Tensors> rest = nullptr,
                          const detail::Fc1Bytes* fc1_bytes = nullptr) const {
    const auto* loaded = opened();
    if (loaded == nullptr || loaded->api->checkpoint == nullptr) {
      throw LoadError("recoup: this plugin has no checkpoint engine; load librecoup.so");
    }
    using Region = detail::Region<Tensors>;
    const std::string name = "layer " + std::to_string(number()) + " " + part;
    const auto* keeper =
        may_distribute ? static_cast<const Region*>(state_->keeper.get()) : nullptr;
    recoup_region_v1 region{};
    region.struct_size = sizeof(region);
    region.name = name.c_str();
    region.layer_number = number();
    region.part = part.c_str();
    region.modules = modules;
    // A library of version 1.0 would leave the rest out.
    if (rest && !RECOUP_HAS(recoup_plugin_v1, loaded->api, abi_minor)) {
      forward = detail::then(std::move(forward), std::exchange(rest, nullptr));
    }
    if (rest) region.rest = &Region::template call<&Region::rest>;
    region.microbatch = loaded->microbatch.load(std::memory_order_relaxed);
    if (fc1_bytes != nullptr) region.fc1_bytes = &fc1_bytes->bytes;  // lives as long as `forward`
    region.user = new Region{std::move(forward), keeper ? keeper->keep : nullptr,
                             keeper ? keeper->restore : nullptr, std::move(rest)};
    region.forward = &Region::template call<&Region::forward>;
    region.release = &Region::release;
    if (keeper != nullptr) {
      region.keep = &Region::template call<&Region::keep>;
      region.restore = &Region::template call<&Region::restore>;
    }
    Tensors outputs;
    std::exception_ptr exception;
    char error[1024] = "";
    const auto status = loaded->api->checkpoint(loaded->plugin, &region, &inputs, &outputs,
                                                &exception, error, sizeof(error));
    if (exception) std::rethrow_exception(exception);
    if (status != RECOUP_OK) throw std::runtime_error(error);
    return outputs;
  }

  std::shared_ptr<detail::LayerState> state_;
};

}  // namespace recoup
