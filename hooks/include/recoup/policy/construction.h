// The layers of a model as a host constructs them, to say at the end what nobody could know before.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "recoup/policy/policy.h"

namespace recoup {

// A sentence for the host's log.
struct LogLine {
  bool warning;
  std::string text;
};

// Any number of threads may call it at once.
class Construction {
 public:
  // `policy` must outlive it, and stay where it is.
  explicit Construction(const Policy& policy);

  // Counts one layer. With the last one of the stage, or of the model where nobody knows the
  // stage's number, it returns what finish() does, else nothing.
  std::vector<LogLine> add(const LayerInfo& layer);

  // What there is to say of the layers constructed so far: modules that the configuration lists and
  // none of the layers has, or of the whole model's layers none recomputes, as a warning; the true
  // summary, where MoE layers make it another than Policy::summary(). Each time it is called after
  // the first, nothing: a host that cannot say how many layers it constructs calls it at the first
  // step, or when it ends.
  std::vector<LogLine> finish();

 private:
  std::vector<LogLine> lines() const;
  const Policy& policy_;
  const std::int64_t expected_;
  std::mutex mutex_;
  std::vector<LayerInfo> layers_;  // the first kMostListed
  bool finished_ = false;
};

}  // namespace recoup
