// The recompute options of an experiment, by Megatron-LM's names, read from YAML and validated.
//
//   recompute_granularity: selective      # selective | full; unset: nothing is recomputed
//   recompute_modules: [core_attn, mlp]   # selective only; unset: [core_attn], Megatron's default
//   recompute_mlp_num_layers: 12          # layers 1..12 only; unset: every layer
//
// For every module M there are two ways to name its layers: recompute_M_num_layers (the first N)
// and recompute_M_layers (a layer expression, see layers.h). hooks/policy/README.md lists all keys.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "recoup/modules.h"
#include "recoup/policy/layers.h"
#include "recoup/policy/memory_budget.h"
#include "recoup/result.h"

namespace recoup {

enum class Granularity { kNone, kSelective, kFull };

// How `full` picks whole layers. kUniform: every layer, in chunks of recompute_num_layers that
// share one checkpoint. kBlock: the first recompute_num_layers, each its own checkpoint.
enum class Method { kUniform, kBlock };

// The rows of modules.h, in their order.
enum class Module {
#define RECOUP_MODULE(c_name, cc_name, name, bit, layers, meaning) cc_name,
  RECOUP_MODULES(RECOUP_MODULE)
#undef RECOUP_MODULE
};

struct ModuleRow {
  const char* name;
  std::uint32_t bit;         // in the contract
  recoup_layer_kind layers;  // which layers have it
  const char* meaning;
};
inline constexpr ModuleRow kModules[] = {
#define RECOUP_MODULE(c_name, cc_name, name, bit, layers, meaning) \
  {name, std::uint32_t{1} << bit, layers, meaning},
    RECOUP_MODULES(RECOUP_MODULE)
#undef RECOUP_MODULE
};
inline constexpr std::size_t kModuleCount = std::size(kModules);

namespace detail {
constexpr bool module_bits_are_distinct() {
  std::uint32_t seen = RECOUP_MLP_ACTIVATION;
  for (const auto& module : kModules) {
    if ((seen & module.bit) != 0) return false;
    seen |= module.bit;
  }
  return true;
}
}  // namespace detail
static_assert(detail::module_bits_are_distinct(), "modules.h: two modules share a bit");

// What a recomputed MLP keeps. kFull: its input; fc1 and the activation run again. kActivation:
// fc1's output; only the activation function and its dropout run again, no GEMM does.
enum class MlpLevel { kFull, kActivation };

// What layer numbers count: the model's layers, the pipeline stage's layers, or, for the MLP, the
// model's MLPs without those of MoE layers.
enum class LayerScope { kGlobal, kStage, kMlp };

struct Config {
  Granularity granularity = Granularity::kNone;
  std::optional<Method> method;               // full only
  std::optional<std::int64_t> num_layers;     // full only, >= 1
  std::array<bool, kModuleCount> modules{};   // selective only
  std::array<LayerSet, kModuleCount> layers;  // which layers each listed module means
  // The layers whose recomputed MLP is at level kActivation; the others are at kFull.
  LayerSet mlp_activation = LayerSet::first(0);
  LayerScope scope = LayerScope::kGlobal;
  // Whether each tensor-parallel rank keeps only its part of a checkpoint's input.
  bool distribute_saved_activations = false;
  // What all that is said above is only the most of, recomputed no more than this needs.
  std::optional<MemoryBudget> memory_budget;

  // Where each key of the file stands ("file:line:column"), for errors found later.
  std::map<std::string, std::string> where;
  // Sentences for the log about what the file says and may not mean.
  std::vector<std::string> notices;

  Config() { layers.fill(LayerSet::all()); }
  bool has(Module m) const { return modules[static_cast<std::size_t>(m)]; }
  LayerSet& layers_of(Module m) { return layers[static_cast<std::size_t>(m)]; }
  const LayerSet& layers_of(Module m) const { return layers[static_cast<std::size_t>(m)]; }
};

// The key with its place ("x.yaml:3:1: recompute_mlp_layers"), or the key alone where the file does
// not set it.
std::string place_of(const Config& config, const std::string& key);

// A key of the file: the row that reads it, checks it and documents it.
struct ConfigKey {
  // Without what the key would do nothing, so that it is refused.
  enum class Needs {
    kNothing,
    kGranularity,   // recompute_granularity, whichever
    kSelective,     // recompute_granularity: selective
    kFull,          // recompute_granularity: full
    kModule,        // `module` in recompute_modules
    kLayerNumbers,  // a key that numbers layers, or the constant mode (policy.h)
  };
  std::string name;
  std::string value;    // what it may be
  std::string unset;    // what it is where the file does not set it
  std::string example;  // a value
  std::string meaning;
  Needs needs = Needs::kNothing;
  std::size_t module = kModuleCount;    // kModule only
  std::vector<std::string> excludes{};  // keys that it may not stand beside

  // `needs` in words, empty for kNothing.
  std::string requirement() const;
};

// All keys: those of every file, then two for each module.
std::vector<ConfigKey> config_keys();

// No configuration is larger.
inline constexpr std::size_t kLargestConfig = std::size_t{1} << 20;

// Reads `path`, a regular file of at most kLargestConfig bytes. An error names file, line, column
// and key, and says what is allowed; nothing is thrown.
Result<Config> load_config(const std::string& path);

// Parses YAML text (UTF-8, or what its byte order mark says) of at most kLargestConfig bytes;
// `name` stands for the file in errors. Nothing is thrown.
Result<Config> parse_config(const std::string& yaml, const std::string& name);

}  // namespace recoup
