#include "announcer.h"

#include "torch_private.h"

namespace recoup {

Announcer::Announcer(const CheckpointOptions& options) : listener_(options.listener) {
  if (!listener_) return;
  static std::atomic<std::uint64_t> runs{0};
  info_ = std::make_unique<RegionInfo>();
  info_->name = options.name;
  info_->layer_number = options.layer_number;
  info_->module = options.module;
  info_->microbatch = options.microbatch;
  info_->run = ++runs;
  info_->recomputed = options.recompute;
  info_->part = options.part;
}

void Announcer::unpacks() {
  if (!listener_) return;
  const int backward = torch_private::get_current_graph_task_id();
  if (backward_.exchange(backward) != backward || backward == -1) {
    listener_->backward_begins(*info_);
  }
}

}  // namespace recoup
