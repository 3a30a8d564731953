#include "infini_train/include/nn/modules/transformer/recoup_layer.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "gflags/gflags.h"
#include "glog/logging.h"

#include "infini_train/include/nn/modules/container.h"
#include "infini_train/include/nn/modules/module.h"
#include "infini_train/include/nn/modules/transformer/causal_self_attention.h"
#include "infini_train/include/nn/modules/transformer/mlp.h"
#include "infini_train/include/nn/modules/transformer/transformer.h"
#include "infini_train/include/nn/parallel/global.h"
#include "infini_train/include/tensor.h"

// Upstream's own checkpoint, and with it its own flags, where this version has one.
#if __has_include("infini_train/include/utils/checkpoint.h")
#define RECOUP_UPSTREAMS_CHECKPOINT 1
#include "infini_train/include/utils/checkpoint.h"
#else
#define RECOUP_UPSTREAMS_CHECKPOINT 0
#include "infini_train/include/autograd/recompute.h"
DEFINE_string(recompute_granularity, "", "activation recomputation: selective or full (empty: none)");
DEFINE_string(recompute_method, "", "with --recompute_granularity=full: block or uniform");
DEFINE_string(recompute_num_layers, "", "with --recompute_granularity=full: layers of a stage (block) or group (uniform)");
#endif
DEFINE_string(recompute_modules, "", "with --recompute_granularity=selective: core_attn, mlp, or both with a comma");
DEFINE_string(recompute_mlp_num_layers, "", "recompute the MLP of the first N layers only (empty: of all layers)");
DEFINE_string(mlp_recompute_level, "", "activation: keep the output of the MLP's first linear layer");
DEFINE_string(recoup_config, "", "YAML file with the recompute options, in place of the flags");
DEFINE_string(recoup_plugin, "", "recoup's policy library (empty: RECOUP_PLUGIN, else librecoup_policy.so)");

namespace infini_train::nn {
namespace {

std::string FlagValue(const char *name) {
    gflags::CommandLineFlagInfo info;
    return gflags::GetCommandLineFlagInfo(name, &info) ? info.current_value : "";
}

bool IsSet(const char *variable) {
    const char *value = std::getenv(variable);
    return value != nullptr && *value != '\0';
}

// The flags as recoup's YAML, a line each; recoup checks the values.
class Flags {
public:
    Flags() {
        // With upstream's flags, full (and nothing else of ours) is upstream's business.
        const bool selective_of_upstream = FlagValue("recompute_granularity") == "selective";
        const bool upstreams = RECOUP_UPSTREAMS_CHECKPOINT != 0;
        upstream_recomputes_ = upstreams && FlagValue("activation_recompute") == "true" && !selective_of_upstream;
        if (!upstreams || (FlagValue("activation_recompute") == "true" && selective_of_upstream)) {
            Add("recompute_granularity", "", "");
        }
        if (!upstreams) {
            Add("recompute_method", "", "");
            Add("recompute_num_layers", "", "");
        }
        Add("recompute_modules", "[", "]");
        Add("recompute_mlp_num_layers", "", "");
        Add("mlp_recompute_level", "", "");
    }

    const std::string &yaml() const { return yaml_; }
    bool upstream_recomputes() const { return upstream_recomputes_; }

    // A sentence about "options:LINE:COLUMN" names the flag of that line.
    std::string Named(const std::string &text) const {
        const auto at = text.find("options:");
        if (at == std::string::npos || at > 8) { // at the beginning, or after "recoup: "
            return text;
        }
        const auto line = std::strtoul(text.c_str() + at + 8, nullptr, 10);
        return line >= 1 && line <= given_.size() ? given_[line - 1] + text.substr(text.find(": ", at)) : text;
    }

private:
    void Add(const std::string &name, const std::string &before, const std::string &after) {
        const auto value = FlagValue(name.c_str());
        if (value.empty()) {
            return;
        }
        CHECK(value.find_first_of("\n\r") == std::string::npos) << "--" << name << ": must be one line";
        yaml_ += name + ": " + before + value + after + "\n";
        given_.push_back("--" + name + "=" + value);
    }

    std::string yaml_;
    std::vector<std::string> given_; // by line of yaml_
    bool upstream_recomputes_ = false;
};

// One rank of each pipeline stage logs: the first of its data and tensor parallel group.
bool Logs() {
    int dp = 0, tp = 0, pp = 0;
    parallel::global::GetCoordOf(parallel::global::thread_global_rank, dp, tp, pp);
    return dp == 0 && tp == 0;
}

// The attention's decision, in the versions whose attention was patched; elsewhere null.
template <class Attention> recoup::Layer *AttentionsDecision(Attention *attention) {
    if constexpr (requires { attention->recoup_layer; }) {
        return attention != nullptr ? &attention->recoup_layer : nullptr;
    } else {
        return nullptr;
    }
}
template <class Attention> constexpr bool OffersCoreAttn() {
    return requires(Attention *attention) { attention->recoup_layer; };
}

recoup::Host Load(const Flags &flags, int64_t num_layers, int64_t stage_num_layers) {
    recoup::HostOptions options;
    options.name = "InfiniTrain";
    options.config_path = FLAGS_recoup_config;
    options.config_yaml = flags.yaml();
    options.num_layers = num_layers;
    options.stage_num_layers = stage_num_layers;
    options.modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION | (OffersCoreAttn<CausalSelfAttention>() ? RECOUP_CORE_ATTN : 0);
    options.capabilities = RECOUP_CAN_STAGES | RECOUP_CAN_FULL;
    options.log = [flags](recoup_log_level level, const std::string &line) {
        LOG_IF(INFO, level == RECOUP_LOG_INFO && Logs()) << line;
        LOG_IF(WARNING, level == RECOUP_LOG_WARNING) << flags.Named(line);
    };
    const std::string plugin = !FLAGS_recoup_plugin.empty() ? FLAGS_recoup_plugin
                       : IsSet("RECOUP_PLUGIN")       ? std::getenv("RECOUP_PLUGIN")
                                                      : "";
    const bool wanted = !options.config_path.empty() || !options.config_yaml.empty() || IsSet("RECOUP_CONFIG")
                     || IsSet("RECOUP_RECOMPUTE_MLP_NUM_LAYERS")
                     || (!plugin.empty() && !recoup::Host::configured(plugin).empty());
    if (!wanted) {
        return recoup::Host();
    }
    if (flags.upstream_recomputes()) {
        throw recoup::LoadError("--activation_recompute --recompute_granularity=" + FlagValue("recompute_granularity")
                                + ": given beside recoup's options ("
                                + (flags.yaml().empty() ? "a file or the environment" : "flags")
                                + "); allowed is one of the two, or --recompute_granularity=selective");
    }
    return recoup::Host(plugin.empty() ? "librecoup_policy.so" : plugin, options);
}

recoup::Layer Ask(const recoup::Host::LayerInfo &info, int64_t stage_num_layers, int64_t num_layers) {
    // Ranks may be threads of one process, which construct their layers at the same time.
    static std::mutex mutex;
    static std::map<std::pair<int64_t, int64_t>, recoup::Host> hosts;
    const std::lock_guard<std::mutex> guard(mutex);
    const Flags flags;
    try {
        auto host = hosts.find({num_layers, stage_num_layers});
        if (host == hosts.end()) {
            host = hosts.emplace(std::pair(num_layers, stage_num_layers), Load(flags, num_layers, stage_num_layers))
                       .first;
        }
        return host->second.layer(info);
    } catch (const std::exception &error) {
        LOG(FATAL) << flags.Named(error.what());
        throw;
    }
}

} // namespace

void RecoupSetUp(TransformerLayer *layer, int64_t layer_number, int64_t stage_offset, int64_t stage_num_layers,
                 int64_t num_layers) {
    const auto mlp = std::dynamic_pointer_cast<MLP>(layer->mutable_module(TransformerLayer::kMlpLayerName));
    // What stands in the MLP's place and is none is a mixture of experts.
    layer->recoup_layer = Ask({layer_number, /*is_moe=*/mlp == nullptr, stage_offset}, stage_num_layers, num_layers);
    if (mlp != nullptr) {
        mlp->recoup_layer = layer->recoup_layer;
    }
    const auto attention = std::dynamic_pointer_cast<CausalSelfAttention>(
        layer->mutable_module(TransformerLayer::kAttnLayerName));
    if (auto *decision = AttentionsDecision(attention.get())) {
        *decision = layer->recoup_layer;
    }
}

RecoupTensors RecoupCheckpoint(const recoup::Layer &layer, const char *part, const RecoupForward &forward,
                               const RecoupTensors &inputs) {
#if RECOUP_UPSTREAMS_CHECKPOINT
    return utils::checkpoint::Checkpoint(forward, inputs);
#else
    return autograd::recompute::Checkpoint(forward, inputs, "layer " + std::to_string(layer.number()) + " " + part);
#endif
}

RecoupTensors RecoupMlp(const recoup::Layer &layer, const std::shared_ptr<Module> &mlp, const RecoupTensors &x) {
    if (!layer.recompute_mlp() || layer.mlp_activation_only()) {
        return (*mlp)(x);
    }
    return RecoupCheckpoint(layer, "mlp", [mlp](const auto &in) { return (*mlp)(in); }, x);
}

RecoupTensors RecoupLayers(const std::shared_ptr<ModuleList> &layers, RecoupTensors inputs, size_t begin, size_t end) {
    end = std::min(end, static_cast<size_t>(layers->end() - layers->begin()));
    while (begin < end) {
        const auto layer = std::dynamic_pointer_cast<TransformerLayer>((*layers)[begin]);
        const auto group = layer != nullptr ? static_cast<size_t>(layer->recoup_layer.full_group()) : 0;
        const auto next = std::min(begin + std::max<size_t>(group, 1), end);
        const auto run = [layers, begin, next](RecoupTensors in) {
            for (auto i = begin; i < next; ++i) { in[0] = (*(*layers)[i])(in)[0]; }
            return RecoupTensors{in[0]};
        };
        inputs[0] = (group > 0 ? RecoupCheckpoint(layer->recoup_layer, "and its group", run, inputs) : run(inputs))[0];
        begin = next;
    }
    return {inputs[0]};
}

} // namespace infini_train::nn
