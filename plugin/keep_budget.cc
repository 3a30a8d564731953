#include "keep_budget.h"

#include "growth.h"

namespace recoup {

std::string keep_budget(Context& context, const recoup_host_v1& host, const Settings& settings) {
  const auto& config = context.policy.config();
  const auto& asked = *config.memory_budget;
  const auto place = place_of(config, "recompute_memory_budget") + ": ";
  if (kEngine.measure == nullptr) {
    return place +
           "librecoup_policy.so has no engine to measure a step with; load librecoup.so in a "
           "LibTorch host";
  }
  auto device_bytes = RECOUP_GET(&host, device_bytes);
  Controller::World world;
  if (auto* const memory = RECOUP_GET(&host, memory)) {
    world.memory = [memory, user = host.host](bool restart, budget::Memory* m) {
      return memory(user, restart ? 1 : 0, &m->bytes, &m->peak) == 0;
    };
  } else if (auto device = kEngine.device_memory(settings)) {
    world.memory = std::move(device->memory);
    world.room = std::move(device->requested);
    world.restarts = false;
    if (device_bytes <= 0 && asked.kind != MemoryBudget::Kind::kBytes) {
      device_bytes = device->device_bytes();
    }
  } else {
    return place +
           "how much memory is allocated is not known: there is no accelerator whose allocator "
           "could be asked, and this host does not say it (its author must set "
           "recoup_host_v1.memory, HostOptions::memory)";
  }
  world.budget = asked.bytes;
  if (asked.kind != MemoryBudget::Kind::kBytes) {
    if (device_bytes <= 0) {
      return place + asked.text() +
             " is of a device's memory, and this run is on none that has its own (a CPU's is the "
             "whole machine's); allowed are bytes, such as 74GiB";
    }
    world.budget =
        asked.kind == MemoryBudget::Kind::kAuto
            ? device_bytes
            : static_cast<std::int64_t>(asked.fraction * static_cast<double>(device_bytes));
  }
  if (RECOUP_GET(&host, pipeline_stages) > 1) {
    world.pipeline = budget::Pipeline{RECOUP_GET(&host, pipeline_stage)};
  }
  if (auto* const agree = RECOUP_GET(&host, agree)) {
    world.agree = [agree, user = host.host](std::int64_t* values, std::size_t count) {
      return agree(user, values, count) == 0;
    };
  }
  // Called while the context is pinned. What goes wrong is said by every rank, each for itself.
  world.say = [context = &context, rank = host.rank](bool warning, const std::string& line) {
    if (context->logs) {
      context->say(warning ? RECOUP_LOG_WARNING : RECOUP_LOG_INFO, line);
    } else if (warning) {
      context->write(RECOUP_LOG_WARNING, "rank " + std::to_string(rank) + ": " + line);
    }
  };
  if (context.recorder != nullptr) {
    world.show_memory = [recorder = context.recorder, limit = world.budget](std::int64_t bytes) {
      recorder->memory(bytes, limit);
    };
    world.show_event = [recorder = context.recorder](const std::string& text,
                                                     std::int64_t predicted) {
      recorder->event(text, predicted);
    };
  }
  context.controller = std::make_shared<Controller>(std::move(world));
  context.measure = kEngine.measure(context.controller);
  return {};
}

}  // namespace recoup
