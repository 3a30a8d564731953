// Trains a small GPT on the bytes of a text. What recoup needs of a trainer: the --plugin and
// --config flags, a recoup::Host made from them, and a recoup::Layer in each layer (model.h).
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "../activation_meter.h"
#include "microbatches.h"
#include "report.h"

namespace {

struct Options {
  gpt::Config model;
  std::int64_t batch = 4, steps = 20, seed = 1;
  double learning_rate = 1e-3;
  int tensor_parallel = 1, pipeline_parallel = 1;
  std::int64_t microbatches = 1;
  std::string memory_budget, text, plugin, config, device = "auto", report;
};

Options parse(int argc, char** argv) {
  Options o;
  CLI::App app("Trains a small GPT on the bytes of a text file.");
  app.add_option("--text", o.text, "Text to train on")->required()->check(CLI::ExistingFile);
  app.add_option("--plugin", o.plugin, "recoup plugin to load, librecoup.so (none: no recompute)");
  app.add_option("--config", o.config, "YAML with the recompute options, for the plugin");
  app.add_option("--memory-budget", o.memory_budget,
                 "Memory that the plugin shall keep to by recomputing MLPs (or what --config "
                 "allows), such as 74GiB; for recompute_memory_budget in a file");
  app.option_defaults()->always_capture_default()->multi_option_policy(
      CLI::MultiOptionPolicy::TakeLast);
  const auto positive = CLI::Range(std::int64_t{1}, std::int64_t{1} << 40);
  const auto not_negative = CLI::Range(std::int64_t{0}, std::int64_t{1} << 40);
  app.add_option("--layers", o.model.layers, "Transformer layers")->check(positive);
  app.add_option("--hidden", o.model.hidden, "Hidden size")->check(positive);
  app.add_option("--heads", o.model.heads, "Attention heads")->check(positive);
  app.add_option("--ffn", o.model.ffn, "Inner size of the MLP")->check(positive);
  app.add_option("--context", o.model.context, "Tokens in a sequence")->check(positive);
  app.add_option("--moe-every", o.model.moe_every, "Every k-th layer is MoE, 0: none")
      ->check(not_negative);
  app.add_option("--experts", o.model.experts, "Experts of an MoE layer")->check(positive);
  app.add_option("--dropout", o.model.dropout, "Dropout probability")->check(CLI::Range(0.0, 0.99));
  app.add_option("--tensor-parallel", o.tensor_parallel,
                 "Ranks that share each layer; the others are data parallel")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--pipeline-parallel", o.pipeline_parallel,
                 "Pipeline stages, each of as many ranks")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--microbatches", o.microbatches, "Equal parts in which a step's batch is run")
      ->check(positive);
  app.add_option("--wide-every", o.model.wide_every,
                 "Every k-th layer's MLP is four times as wide, 0: none")
      ->check(not_negative);
  app.add_option("--batch", o.batch, "Sequences in a step of each data-parallel rank")
      ->check(positive);
  app.add_option("--steps", o.steps, "Training steps")->check(positive);
  app.add_option("--seed", o.seed, "Random seed")
      ->check([](const std::string& text) -> std::string {  // CLI11 wraps what does not fit
        errno = 0;
        char* end = nullptr;
        std::strtoll(text.c_str(), &end, 10);
        return errno == 0 && end != text.c_str() && *end == '\0'
                   ? ""
                   : "must be an integer of 64 bits, not " + text;
      });
  app.add_option("--learning-rate", o.learning_rate, "AdamW's learning rate");
  app.add_option("--device", o.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--report", o.report, "Write losses and bytes to this JSON file");
  try {
    app.parse(argc, argv);
    if (o.model.hidden % o.model.heads != 0) {
      throw CLI::ValidationError("--heads", "must divide --hidden");
    }
    if (o.batch % o.microbatches != 0) {
      throw CLI::ValidationError("--microbatches", "must divide --batch");
    }
    if (o.pipeline_parallel > o.model.layers) {
      throw CLI::ValidationError("--pipeline-parallel", "is more than --layers");
    }
    if (!o.memory_budget.empty() && o.plugin.empty()) {
      throw CLI::ValidationError("--memory-budget", "needs --plugin");
    }
    if (o.tensor_parallel > 1 && o.model.moe_every > 0) {
      throw CLI::ValidationError("--moe-every", "does not work with --tensor-parallel");
    }
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e));
  }
  return o;
}

// The bytes of a text as tokens, and random windows of them.
class Text {
 public:
  Text(const std::string& path, std::int64_t seed)
      : generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    tokens_ = at::empty({static_cast<std::int64_t>(bytes.size())}, at::kByte);
    std::copy(bytes.begin(), bytes.end(), tokens_.data_ptr<std::uint8_t>());
    tokens_ = tokens_.to(at::kLong);
  }
  // [batch, length + 1]
  at::Tensor windows(std::int64_t batch, std::int64_t length) {
    TORCH_CHECK(tokens_.numel() > length, "--text: has ", tokens_.numel(),
                " bytes, needs more than --context ", length);
    const auto start = at::randint(0, tokens_.numel() - length, {batch, 1}, generator_, at::kLong);
    return tokens_.index({start + at::arange(length + 1)});
  }

 private:
  at::Tensor tokens_;
  at::Generator generator_;  // its own, so that data does not depend on the model's draws
};

// The plugin, for this rank.
recoup::Host start_recoup(const Options& o, const gpt::World& world, at::Device device,
                          recoup::ActivationMeter& meter) {
  if (o.plugin.empty()) {
    if (!o.config.empty()) throw std::invalid_argument("--config needs --plugin");
    return {};
  }
  recoup::HostOptions host;
  host.name = "gpt_trainer";
  host.torch_version = TORCH_VERSION;
  host.config_path = o.config;
  host.rank = world.rank;
  host.num_layers = o.model.layers;
  host.stage_num_layers = o.model.stage_layers();
  host.modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION | RECOUP_CORE_ATTN | RECOUP_MOE;
  host.capabilities =
      RECOUP_CAN_FULL | RECOUP_CAN_DISTRIBUTE | RECOUP_CAN_STAGES | RECOUP_CAN_BUDGET;
  host.pipeline_stages = o.model.stages;
  host.pipeline_stage = o.model.stage;
  if (device.is_cpu()) {  // an accelerator's allocator is asked by the plugin
    host.memory = [&meter](bool restart) {
      const recoup::HostOptions::Memory memory{meter.bytes(), meter.peak_bytes()};
      if (restart) meter.restart_peak();
      return memory;
    };
  }
  if (world.tensor->size() > 1) {
    host.agree = [group = world.tensor, device](std::int64_t* values, std::size_t count) {
      group->all_max(values, count, device);
    };
  }
  if (!o.memory_budget.empty()) {
    ::setenv("RECOUP_MEMORY_BUDGET", o.memory_budget.c_str(), 1);
    const char* file = std::getenv("RECOUP_CONFIG");
    if (o.config.empty() && (file == nullptr || *file == '\0')) {
      host.config_yaml = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";
    }
  }
  return recoup::Host(o.plugin, host);
}

int train(Options o) {
  if (o.device == "auto") o.device = torch::cuda::is_available() ? "cuda" : "cpu";
  const auto world = gpt::World::join(o.tensor_parallel, o.pipeline_parallel, o.device);
  const at::Device device =
      o.device == "cpu" ? at::Device(at::kCPU)
                        : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(world.local_rank));
  const c10::OptionalDeviceGuard on_device(device);
  o.model.tensor_parallel = world.tensor;
  o.model.stages = world.pipeline->size();
  o.model.stage = world.pipeline->rank();
  // Where ranks differ in memory each has a report of its own.
  const bool each_reports = o.pipeline_parallel > 1 || !o.memory_budget.empty();
  const auto report_path =
      world.rank == 0 || o.report.empty() ? o.report : o.report + "." + std::to_string(world.rank);
  gpt::Report report(world.rank == 0 || each_reports ? report_path : "");
  recoup::ActivationMeter for_recoup(device.type()), of_steps(device.type());
  recoup::Host recoup = start_recoup(o, world, device, for_recoup);

  torch::manual_seed(o.seed);
  gpt::Model model(o.model, recoup);
  model->to(device);
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(o.learning_rate));
  Text text(o.text, o.seed);
  const gpt::Progress progress(o.steps);
  nlohmann::json losses = nlohmann::json::array(), step_peaks = nlohmann::json::array();
  std::int64_t saved = 0, peak = 0;
  const std::int64_t tokens_per_step = o.batch * o.model.context * world.data->size();
  std::vector<double> step_seconds;
  for (std::int64_t step = 1; step <= o.steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    optimizer.zero_grad();
    // All ranks draw all windows; each data-parallel rank takes its own.
    const auto windows = text.windows(o.batch * world.data->size(), o.model.context)
                             .narrow(0, o.batch * world.data->rank(), o.batch)
                             .to(device);
    {
      const ActivationMeter meter(device.type());
      gpt::Microbatches microbatches;
      microbatches.count = o.microbatches;
      microbatches.begins = [&](std::int64_t m) { recoup.microbatch(m); };
      microbatches.after_forward = [&] {  // all that a forward keeps, its results included
        saved = meter.bytes();
      };
      auto mean = gpt::train(model, o.model, world, windows, microbatches);
      peak = std::max(peak, meter.peak_bytes());
      for (const auto& p : model->parameters()) {
        if (world.data->size() > 1)
          world.data->all_reduce(p.mutable_grad().div_(world.data->size()));
      }
      mean.div_(world.data->size());
      world.data->all_reduce(mean);
      world.pipeline->all_reduce(mean);  // the other stages' are 0
      losses.push_back(mean.item<float>());
    }
    optimizer.step();
    step_peaks.push_back(of_steps.peak_bytes());
    of_steps.restart_peak();
    recoup.step_end();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    step_seconds.push_back(took.count());
    if (world.rank == 0) {
      progress.show(step, losses.back(),
                    static_cast<double>(tokens_per_step) / gpt::steady_seconds(step_seconds));
    }
  }
  recoup.close();  // a profile or trace that cannot be written is an error
  const double tokens_per_second =
      static_cast<double>(tokens_per_step) / gpt::steady_seconds(step_seconds);
  report.write({{"losses", losses},
                {"saved_bytes", saved},
                {"peak_bytes", peak},
                {"step_peak_bytes", step_peaks},
                {"tokens_per_step", tokens_per_step},
                {"step_seconds", step_seconds},
                {"tensor_parallel_collectives", world.tensor->collectives()},
                {"tokens_per_second", tokens_per_second}});
  if (world.rank != 0) return 0;
  std::printf(
      "loss %.6f -> %.6f, %.0f tokens/s, %lld activation bytes saved by forward, %lld at the "
      "peak, on %s\n",
      losses.front().get<double>(), losses.back().get<double>(), tokens_per_second,
      static_cast<long long>(saved), static_cast<long long>(peak), device.str().c_str());
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error(std::string("the result cannot be written to standard output: ") +
                             std::strerror(errno));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const auto options = parse(argc, argv);
  try {
    return train(options);
  } catch (const c10::Error& e) {
    std::fprintf(stderr, "gpt_trainer: %s\n", e.what_without_backtrace());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "gpt_trainer: %s\n", e.what());
  }
  return 1;
}
