#include "infini_train/include/nn/modules/transformer/recoup_layer.h"

#include <map>
#include <mutex>
#include <string>

#include "gflags/gflags.h"
#include "glog/logging.h"

#include "infini_train/include/autograd/recompute.h"
#include "infini_train/include/nn/modules/module.h"
#include "infini_train/include/nn/parallel/global.h"
#include "infini_train/include/tensor.h"

DEFINE_string(recompute_granularity, "", "activation recomputation: selective (empty: none)");
DEFINE_string(recompute_modules, "", "modules to recompute with --recompute_granularity=selective: mlp");
DEFINE_string(recompute_mlp_num_layers, "", "recompute the MLP of the first N layers only (empty: of all layers)");
DEFINE_string(recoup_config, "", "YAML file with the recompute options, in place of the flags");
DEFINE_string(recoup_plugin, "librecoup_policy.so", "recoup's policy library");

namespace infini_train::nn {
namespace {

// The flags as recoup's YAML; recoup checks the values.
std::string FlagsAsYaml() {
    std::string yaml;
    const auto add = [&yaml](const std::string &key, const std::string &value) {
        if (!value.empty()) {
            yaml += key + ": " + value + "\n";
        }
    };
    add("recompute_granularity", FLAGS_recompute_granularity);
    add("recompute_modules", FLAGS_recompute_modules.empty() ? "" : "[" + FLAGS_recompute_modules + "]");
    add("recompute_mlp_num_layers", FLAGS_recompute_mlp_num_layers);
    return yaml;
}

recoup::Host Load(int64_t num_layers) {
    recoup::HostOptions options;
    options.name = "InfiniTrain";
    options.config_path = FLAGS_recoup_config;
    options.config_yaml = FlagsAsYaml();
    options.num_layers = num_layers;
    options.modules = RECOUP_MLP;
    options.capabilities = RECOUP_CAN_STAGES;
    options.log = [](recoup_log_level level, const std::string &line) {
        if (parallel::global::thread_global_rank == 0) {
            LOG_IF(INFO, level == RECOUP_LOG_INFO) << line;
            LOG_IF(WARNING, level == RECOUP_LOG_WARNING) << line;
        }
    };
    const bool wanted = !options.config_path.empty() || !options.config_yaml.empty()
                     || std::getenv("RECOUP_CONFIG") != nullptr
                     || std::getenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS") != nullptr;
    return wanted ? recoup::Host(FLAGS_recoup_plugin, options) : recoup::Host();
}

} // namespace

recoup::Layer RecoupLayer(int64_t layer_number, int64_t stage_offset, int64_t num_layers) {
    // Ranks may be threads of one process, which construct their layers at the same time.
    static std::mutex mutex;
    static std::map<int64_t, recoup::Host> hosts;
    const std::lock_guard<std::mutex> guard(mutex);
    try {
        auto host = hosts.find(num_layers);
        if (host == hosts.end()) {
            host = hosts.emplace(num_layers, Load(num_layers)).first;
        }
        return host->second.layer({layer_number, /*is_moe=*/false, stage_offset});
    } catch (const std::exception &error) {
        LOG(FATAL) << error.what();
        throw;
    }
}

std::vector<std::shared_ptr<Tensor>> RecoupMlp(const recoup::Layer &layer, const std::shared_ptr<Module> &mlp,
                                               const std::vector<std::shared_ptr<Tensor>> &x) {
    if (!layer.recompute_mlp()) {
        return (*mlp)(x);
    }
    return autograd::recompute::Checkpoint([mlp](const auto &in) { return (*mlp)(in); }, x,
                                           "layer " + std::to_string(layer.number()) + " mlp");
}

} // namespace infini_train::nn
