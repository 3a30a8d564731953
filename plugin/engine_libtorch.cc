// The engine's half of the library: checkpoint() over hooks/checkpoint.
#include <c10/core/GradMode.h>
#include <torch/version.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "context.h"
#include "device_memory.h"
#include "growth.h"
#include "measure.h"
#include "profile.h"
#include "recoup/checkpoint/checkpoint.h"
#include "trace.h"

namespace recoup {
namespace {

// What the settings ask to be recorded.
struct Recording final : Recorder {
  std::shared_ptr<Profile> profile;
  std::shared_ptr<Trace> trace;
  std::shared_ptr<EventListener> listener;  // both

  bool profiles() const override { return profile != nullptr; }
  std::string write() override {
    std::string problems;
    for (const auto& why : {profile ? profile->write() : "", trace ? trace->write() : ""}) {
      if (!why.empty()) problems += (problems.empty() ? "" : "; ") + why;
    }
    return problems;
  }
  void memory(std::int64_t bytes, std::int64_t budget) override {
    if (trace != nullptr) trace->memory(bytes, budget);
  }
  void event(const std::string& text, std::int64_t predicted) override {
    if (trace != nullptr) trace->event(text, predicted);
  }
  std::string remark() override {
    const auto left_out = trace != nullptr ? trace->left_out() : 0;
    if (left_out == 0) return {};
    return std::string(kTraceVariable) + ": the first " + std::to_string(Trace::kMaxSpans) +
           " spans were kept, " + std::to_string(left_out) + " were left out; trace a shorter run";
  }
};

Result<std::shared_ptr<Recorder>> record(const Settings& settings, int rank) {
  // Each rank has files of its own.
  const auto of_rank = [rank](const std::string& path) {
    return rank == 0 ? path : path + "." + std::to_string(rank);
  };
  const auto recording = std::make_shared<Recording>();
  if (!settings.profile_path.empty()) {
    auto output = Output::open(kProfileVariable, of_rank(settings.profile_path));
    if (!output.ok()) return output.error();
    recording->profile = std::make_shared<Profile>(std::move(output.value()));
  }
  if (!settings.trace_path.empty()) {
    auto output = Output::open(kTraceVariable, of_rank(settings.trace_path));
    if (!output.ok()) return output.error();
    recording->trace = std::make_shared<Trace>(std::move(output.value()), rank);
  }
  recording->listener = all_listeners({recording->profile, recording->trace});
  if (recording->listener == nullptr) return std::shared_ptr<Recorder>();
  return std::shared_ptr<Recorder>(recording);
}

bool training() { return at::GradMode::is_enabled(); }

Controller::Shape first_shape(const Tensors& inputs) {
  for (const auto& t : inputs) {
    if (t.defined()) return t.sizes().vec();
  }
  return {};
}

std::int64_t bytes_of(const Tensors& inputs) {
  std::int64_t bytes = 0;
  for (const auto& t : inputs) bytes += t.defined() ? static_cast<std::int64_t>(t.nbytes()) : 0;
  return bytes;
}

// A host's region; released when the last function made of it goes.
class HostRegion {
 public:
  using Function = decltype(recoup_region_v1::forward);

  explicit HostRegion(const recoup_region_v1& region) : user_(region.user, region.release) {}

  // One of the region's functions, as the engine calls it. `failed` is for the first call only:
  // that of the forward, while checkpoint() is on the stack.
  Forward function(Function f, const std::shared_ptr<bool>& failed) const {
    return [user = user_, f, failed](const Tensors& in) {
      Tensors out;
      std::exception_ptr exception;
      if (f(user.get(), &in, &out, &exception) != 0) {
        *failed = true;
        // Among them what ends a recompute: the engine's own exception comes back to it.
        if (exception) std::rethrow_exception(exception);
        throw std::runtime_error("recoup: the host's function failed without an exception");
      }
      return out;
    };
  }

 private:
  std::shared_ptr<void> user_;
};

Check check_named(const std::string& name) {
  return name == kCheckValues ? Check::kValues : name == kCheckCopy ? Check::kCopy : Check::kShapes;
}

// "recoup: layer 3 mlp: ..." of the exception under way.
std::string sentence(const std::string& name, const char* who) {
  std::string why = "it threw no std::exception";
  try {
    throw;
  } catch (const c10::Error& e) {
    why = e.what_without_backtrace();
  } catch (const std::exception& e) {
    why = e.what();
  } catch (...) {
  }
  return "recoup: " + name + ": " + who + " failed: " + why;
}

recoup_status run_checkpoint(void* opaque, const recoup_region_v1* region, const void* inputs,
                             void* outputs, void* exception, char* error, size_t size) noexcept {
  std::string name = "region";
  const auto failed = std::make_shared<bool>(false);
  try {
    if (region == nullptr || region->struct_size < RECOUP_REGION_V1_MIN ||
        region->release == nullptr) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: checkpoint needs a region whose struct_size is its sizeof, at least " +
                      std::to_string(RECOUP_REGION_V1_MIN) + " bytes, with forward and release",
                  error, size);
    }
    const HostRegion host(*region);  // from here on released whatever happens
    const PinnedContext plugin(contexts(), opaque);
    if (!plugin) {
      return fail(RECOUP_INVALID_ARGUMENT, "recoup: checkpoint: " + contexts().problem(opaque),
                  error, size);
    }
    if (region->forward == nullptr || inputs == nullptr || outputs == nullptr ||
        exception == nullptr) {
      return fail(RECOUP_INVALID_ARGUMENT,
                  "recoup: checkpoint needs a region with forward, inputs, outputs and exception",
                  error, size);
    }
    if (region->name != nullptr) name = region->name;
    const auto number = RECOUP_GET(region, layer_number);
    if (const auto missing = plugin->layers->forward_begins(number, RECOUP_GET(region, modules));
        !missing.empty()) {
      plugin->say(RECOUP_LOG_WARNING, missing);
    }
    const auto& in = *static_cast<const Tensors*>(inputs);
    auto& out = *static_cast<Tensors*>(outputs);
    auto forward = [run = host.function(region->forward, failed), layers = plugin->layers,
                    ran = false](const Tensors& in) mutable {
      if (std::exchange(ran, true)) layers->recompute_begins();
      return run(in);
    };
    CheckpointOptions options;
    options.name = name;
    options.layer_number = number;
    if (const char* part = RECOUP_GET(region, part)) options.part = part;
    options.check = check_named(plugin->check);
    options.module = static_cast<std::uint32_t>(RECOUP_GET(region, modules));
    if (const auto* recording = static_cast<const Recording*>(plugin->recorder.get())) {
      options.listener = recording->listener;
      options.recompute = !recording->profiles();
    }
    options.microbatch = RECOUP_GET(region, microbatch);
    std::optional<Fc1Bytes> fc1_bytes;
    if (plugin->controller != nullptr && training()) {
      const auto run = plugin->controller->begins(
          number, RECOUP_GET(region, modules), options.microbatch, first_shape(in), bytes_of(in));
      options.recompute = run.recompute;
      if (run.measured) {
        fc1_bytes.emplace(RECOUP_GET(region, fc1_bytes));
        options.listener = all_listeners(
            {std::static_pointer_cast<EventListener>(plugin->measure), options.listener});
      }
    }
    if (options.recompute && RECOUP_GET(region, keep) != nullptr &&
        RECOUP_GET(region, restore) != nullptr) {
      options.pack_inputs = host.function(region->keep, failed);
      options.unpack_inputs = host.function(region->restore, failed);
    }
    if (RECOUP_GET(region, rest) != nullptr) {
      out = checkpoint_parts(std::move(forward), host.function(region->rest, failed), in, options);
    } else {
      out = checkpoint(std::move(forward), in, options);
    }
    return RECOUP_OK;
  } catch (...) {
    if (exception != nullptr) {
      *static_cast<std::exception_ptr*>(exception) = std::current_exception();
    }
    return *failed
               ? fail(RECOUP_CALLBACK_FAILED, sentence(name, "the host's function"), error, size)
               : fail(RECOUP_ENGINE_FAILED, sentence(name, "the checkpoint"), error, size);
  }
}

}  // namespace

const Engine kEngine = {TORCH_VERSION,    &run_checkpoint, &record,
                        &measure_regions, &training,       &device_memory};

}  // namespace recoup
