// Which layer recomputes what: the one place that decides, for every host.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "recoup/policy/config.h"

namespace recoup {

// A transformer layer as its host constructs it.
struct LayerInfo {
  std::int64_t number;            // 1-indexed, global over all pipeline stages
  bool is_moe = false;            // its MLP is a mixture of experts
  std::int64_t stage_offset = 0;  // layers before this pipeline stage's first one
  std::int64_t mlp_number = 0;    // 1-indexed among the model's dense MLPs; 0: unknown, or none
};

// What the host can say of itself; each part may be unknown.
struct Model {
  std::int64_t num_layers = 0;                        // in the whole model; 0: unknown
  std::int64_t stage_num_layers = 0;                  // on this pipeline stage; 0: unknown
  std::optional<std::vector<std::string>> modules{};  // which modules it can recompute
  bool mlp_activation = true;  // whether its MLP can recompute from fc1's output on
  bool full = true;            // whether it recomputes whole layers (granularity full)
  bool distribute = true;      // whether it distributes saved activations over its TP ranks
  bool stages = true;          // whether it says how many layers stand before a pipeline stage
  bool budget = false;         // whether it can keep a memory budget while training
  std::optional<std::int64_t> num_mlps{};  // layers with a dense MLP in the whole model
};

// The quick hack: a first-N for the MLP that needs no YAML.
struct Override {
  std::int64_t mlp_num_layers;  // >= 0; 0: no MLP is recomputed
  std::string source;           // for the log: which setting this is
};

class Policy {
 public:
  // The constant mode's value, if any: the environment variable RECOUP_RECOMPUTE_MLP_NUM_LAYERS,
  // else the CMake cache constant of the same name that this library was built with. An error
  // where either is not an integer >= 0.
  static Result<std::optional<Override>> find_override();

  // Joins the configuration and the override, which wins over recompute_mlp_num_layers (and
  // recompute_mlp_layers) and needs neither granularity nor modules. An error where they
  // contradict each other or the model.
  static Result<Policy> create(Config config, std::optional<Override> override, const Model& model);

  // Why nothing can be decided for `layer`, as a sentence, or empty: the configuration counts MLPs
  // (scope mlp), and it does not say which MLP it has. To be asked before the decisions.
  std::string problem_with(const LayerInfo& layer) const;

  // The decision for one module of one layer. False for modules the layer does not have: "mlp" of
  // an MoE layer, "moe", "moe_act" and "shared_experts" of any other.
  bool recomputes(Module module, const LayerInfo& layer) const;

  // For granularity full: how many consecutive layers, starting with this one, share a checkpoint.
  // 0 where none starts here.
  std::int64_t full_group(const LayerInfo& layer) const;

  // What a recomputed MLP of this layer keeps.
  MlpLevel mlp_level(const LayerInfo& layer) const;
  const Config& config() const { return config_; }
  const Model& model() const { return model_; }

  // How many layers a module's layer numbers count; unset where the host did not say.
  std::optional<std::int64_t> total(Module module) const;

  // Sentences for the host's log: where the decision comes from, and warnings.
  const std::vector<std::string>& notices() const { return notices_; }

  // What happens, in one line for the log, as far as it is known before any layer is constructed:
  // "12 of 24 MLPs recomputed (layers 1-12, level full), core_attn everywhere".
  std::string summary() const;

  // The same of exactly these layers.
  std::string summary(const std::vector<LayerInfo>& layers) const;

  // One line for the log: "Layer {n}: recompute_mlp={True|False}", then what else the layer does:
  // "Layer 3: recompute_mlp=True, level activation, also core_attn".
  std::string describe(const LayerInfo& layer) const;

 private:
  Policy() = default;
  // The layer's number in the scope that the configuration counts in.
  std::int64_t number(Module module, const LayerInfo& layer) const;
  Config config_;
  Model model_;
  std::vector<std::string> notices_;
};

}  // namespace recoup
