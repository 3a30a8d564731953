// The recompute options of an experiment, by Megatron-LM's names, read from YAML and validated.
//
//   recompute_granularity: selective      # selective | full; unset: nothing is recomputed
//   recompute_modules: [core_attn, mlp]   # selective only; unset: [core_attn], Megatron's default
//   recompute_mlp_num_layers: 12          # layers 1..12 only; unset: every layer
//
// For every module M there are two ways to name its layers: recompute_M_num_layers (the first N)
// and recompute_M_layers (a layer expression, see layers.h). README.md lists all keys.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "recoup/layers.h"
#include "recoup/result.h"

namespace recoup {

enum class Granularity { kNone, kSelective, kFull };

// How `full` picks whole layers. kUniform: every layer, in chunks of recompute_num_layers that
// share one checkpoint. kBlock: the first recompute_num_layers, each its own checkpoint.
enum class Method { kUniform, kBlock };

// The modules Megatron-LM can recompute, in the order of kModuleNames.
enum class Module { kCoreAttn, kMlp, kLayernorm, kMoeAct, kMoe, kSharedExperts, kMlaUpProj };
inline constexpr std::size_t kModuleCount = 7;
extern const std::array<const char*, kModuleCount> kModuleNames;

// What a recomputed MLP keeps. kFull: its input; fc1 and the activation run again. kActivation:
// fc1's output; only the activation function and its dropout run again, no GEMM does.
enum class MlpLevel { kFull, kActivation };

struct Config {
  Granularity granularity = Granularity::kNone;
  std::optional<Method> method;                  // full only
  std::optional<std::int64_t> num_layers;        // full only, >= 1
  std::array<bool, kModuleCount> modules{};      // selective only
  std::array<LayerSet, kModuleCount> layers;     // which layers each listed module means
  // The layers whose recomputed MLP is at level kActivation; the others are at kFull.
  LayerSet mlp_activation = LayerSet::first(0);
  // Whether layer numbers count from the first layer of the model or of the pipeline stage.
  bool per_stage = false;
  // Whether each tensor-parallel rank keeps only its part of a checkpoint's input.
  bool distribute_saved_activations = false;

  // Where each key of the file stands ("file:line:column"), for errors found later.
  std::map<std::string, std::string> where;

  Config() { layers.fill(LayerSet::all()); }
  bool has(Module m) const { return modules[static_cast<std::size_t>(m)]; }
  LayerSet& layers_of(Module m) { return layers[static_cast<std::size_t>(m)]; }
  const LayerSet& layers_of(Module m) const { return layers[static_cast<std::size_t>(m)]; }
};

// Reads `path`. An error names file, line, column and key, and says what is allowed.
Result<Config> load_config(const std::string& path);

// Parses YAML text; `name` stands for the file in errors.
Result<Config> parse_config(const std::string& yaml, const std::string& name);

}  // namespace recoup
