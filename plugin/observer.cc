#include "observer.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "../hooks/checkpoint/saved_tensors.h"

namespace recoup {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> v) {
  if (v.size() > 1) v.erase(v.begin());  // the first call warms up
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

// Watches what a forward saves, and lets it be saved as it is.
class Watch final : public HookScope {
 public:
  explicit Watch(const Tensors& inputs) {
    for (const auto& t : inputs) {
      if (t.defined() && t.has_storage()) inputs_.insert(t.storage().unsafeGetStorageImpl());
    }
  }

  std::unique_ptr<torch::autograd::SavedVariableHooks> make() override {
    class Keep final : public torch::autograd::SavedVariableHooks {
     public:
      explicit Keep(Watch& watch) : watch_(watch) {}
      void call_pack_hook(const at::Tensor& t) override {
        watch_.saw(t);
        held_ = t.tensor_data();
      }
      at::Tensor call_unpack_hook() override { return held_; }

     private:
      Watch& watch_;
      at::Tensor held_;
    };
    return std::make_unique<Keep>(*this);
  }

  std::int64_t bytes() const { return bytes_; }
  // Of the inputs' storages, those that the forward did not save.
  std::int64_t unsaved_input_bytes() const {
    std::int64_t bytes = 0;
    for (const auto* storage : inputs_) {
      if (seen_.count(storage) == 0) bytes += static_cast<std::int64_t>(storage->nbytes());
    }
    return bytes;
  }
  double last_saved_ms() const { return last_saved_ms_; }

 private:
  void saw(const at::Tensor& t) {
    last_saved_ms_ = ms_since(start_);
    if (!t.has_storage()) return;
    // A parameter, or a view of one.
    const auto& base = t.is_view() ? t._base() : t;
    if (base.is_leaf() && base.requires_grad()) return;
    const auto* storage = t.storage().unsafeGetStorageImpl();
    if (seen_.insert(storage).second && inputs_.count(storage) == 0) {
      bytes_ += static_cast<std::int64_t>(storage->nbytes());
    }
  }

  const Clock::time_point start_ = Clock::now();
  std::set<const c10::StorageImpl*> inputs_, seen_;
  std::int64_t bytes_ = 0;
  double last_saved_ms_ = 0;
};

int thread_number() {
  static std::atomic<int> next{1};
  thread_local const int mine = next++;
  return mine;
}

}  // namespace

std::shared_ptr<Observer> Observer::open(const Settings& settings, int rank) {
  if (settings.profile_path.empty() && settings.trace_path.empty()) return nullptr;
  const auto of_rank = [rank](const std::string& path) {
    return path.empty() || rank == 0 ? path : path + "." + std::to_string(rank);
  };
  auto observer = std::make_shared<Observer>();
  observer->rank_ = rank;
  observer->profile_path_ = of_rank(settings.profile_path);
  observer->trace_path_ = of_rank(settings.trace_path);
  return observer;
}

Tensors Observer::measure(const std::string& region, const Forward& forward,
                          const Tensors& inputs) {
  if (!at::GradMode::is_enabled()) return forward(inputs);
  const auto start = Clock::now();
  Watch watch(inputs);
  auto outputs = forward(inputs);
  const auto forward_ms = ms_since(start);
  const std::lock_guard<std::mutex> guard(mutex_);
  auto [entry, fresh] = measured_.try_emplace(region);
  if (fresh) order_.push_back(region);
  auto& m = entry->second;
  m.input_bytes = 0;
  for (const auto& t : inputs)
    m.input_bytes += t.defined() ? static_cast<std::int64_t>(t.nbytes()) : 0;
  m.extra_bytes = watch.unsaved_input_bytes();
  m.saved_bytes = watch.bytes();
  m.forward_ms.push_back(forward_ms);
  m.recompute_ms.push_back(watch.last_saved_ms());
  return outputs;
}

Forward Observer::traced(const std::string& region, Forward forward) {
  const auto runs = std::make_shared<std::atomic<int>>(0);
  return
      [self = shared_from_this(), region, runs, forward = std::move(forward)](const Tensors& in) {
        struct Recorder {  // also where a recompute ends early
          Observer& self;
          const std::string& region;
          bool recompute;
          Clock::time_point start = Clock::now();
          ~Recorder() {
            const std::lock_guard<std::mutex> guard(self.mutex_);
            const auto us = [&](Clock::duration d) {
              return std::chrono::duration<double, std::micro>(d).count();
            };
            self.spans_.push_back({region, recompute, us(start - self.epoch_),
                                   us(Clock::now() - start), thread_number()});
          }
        } recorder{*self, region, (*runs)++ > 0};
        return forward(in);
      };
}

std::string Observer::write() {
  using nlohmann::json;
  std::string problem;
  const auto save = [&](const std::string& path, const json& content) {
    std::ofstream file(path);
    file << content.dump(1) << "\n";
    if (!file.flush()) problem = "cannot write " + path;
  };
  if (!profile_path_.empty()) {
    auto regions = json::array();
    for (const auto& name : order_) {
      const auto& m = measured_.at(name);
      int layer = 0;
      std::sscanf(name.c_str(), "layer %d", &layer);
      regions.push_back({{"layer", layer},
                         {"part", name.substr(name.rfind(' ') + 1)},
                         {"input_bytes", m.input_bytes},
                         {"extra_bytes", m.extra_bytes},
                         {"saved_bytes", m.saved_bytes},
                         {"forward_ms", median(m.forward_ms)},
                         {"recompute_ms", median(m.recompute_ms)}});
    }
    save(profile_path_, {{"recoup_profile", 1}, {"regions", regions}});
  }
  if (!trace_path_.empty()) {
    auto events = json::array();
    for (const auto& s : spans_) {
      events.push_back({{"name", (s.recompute ? "recompute " : "") + s.region},
                        {"cat", s.recompute ? "recompute" : "forward"},
                        {"ph", "X"},
                        {"ts", s.start_us},
                        {"dur", s.length_us},
                        {"pid", rank_},
                        {"tid", s.thread}});
    }
    save(trace_path_, {{"displayTimeUnit", "ms"}, {"traceEvents", events}});
  }
  return problem;
}

}  // namespace recoup
