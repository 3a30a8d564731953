#include "saved_tensors.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <mutex>

namespace recoup {

using torch_private::Engine;
using torch_private::NodePtr;
using torch_private::SavedTensorDefaultHooks;
using torch_private::SavedVariableHooks;

namespace {
thread_local HookScope* innermost = nullptr;
}  // namespace

// Engines are never freed: threads may still run backward while the process ends. There is one for
// each engine that was found in place; see install().
class HookingEngine final : public Engine {
 public:
  // Makes sure that autograd asks here. Another engine may have been put in place since the last
  // call: libtorch_python's, where `import torch` comes late, replaces ours; that of a second copy
  // of recoup in the process wraps it. Only where ours is not reached is another wrapped around it.
  static void install() {
    Engine& now = Engine::get_default_engine();
    if (&now == reaches_us_.load(std::memory_order_acquire)) return;
    static std::mutex mutex;
    const std::lock_guard<std::mutex> guard(mutex);
    if (!reached_through(now)) {
      static std::atomic<HookingEngine*> instance{nullptr};
      instance = new HookingEngine(now);
      torch_private::set_default_engine_stub([]() -> Engine& { return *instance.load(); });
    }
    reaches_us_.store(&Engine::get_default_engine(), std::memory_order_release);
  }

  // Whether a question put to `engine` comes here.
  static bool reached_through(Engine& engine) {
    reached_ = false;
    engine.get_default_saved_variable_hooks();
    return reached_;
  }

  std::unique_ptr<SavedVariableHooks> get_default_saved_variable_hooks() override {
    reached_ = true;
    auto inner = inner_.get_default_saved_variable_hooks();
    if (inner || innermost == nullptr || SavedTensorDefaultHooks::get_tls_state().is_tracing) {
      return inner;
    }
    innermost->asked_ = true;
    return innermost->make();
  }

  torch::autograd::variable_list execute(const torch::autograd::edge_list& roots,
                                         const torch::autograd::variable_list& inputs,
                                         bool keep_graph, bool create_graph, bool accumulate_grad,
                                         const torch::autograd::edge_list& outputs) override {
    return inner_.execute(roots, inputs, keep_graph, create_graph, accumulate_grad, outputs);
  }
  c10::intrusive_ptr<at::ivalue::Future> execute_with_graph_task(
      const std::shared_ptr<torch::autograd::GraphTask>& graph_task, NodePtr graph_root,
      torch::autograd::InputBuffer&& input_buffer) override {
    return inner_.execute_with_graph_task(graph_task, std::move(graph_root),
                                          std::move(input_buffer));
  }
#ifdef RECOUP_TORCH_NODE_CREATION_HOOKS
  std::vector<std::unique_ptr<torch::autograd::NodeCreationHook>> get_node_creation_hooks()
      override {
    return inner_.get_node_creation_hooks();
  }
#endif
  std::unique_ptr<torch::autograd::AnomalyMetadata> make_anomaly_metadata() override {
    return inner_.make_anomaly_metadata();
  }
  void thread_on_exception(const std::shared_ptr<torch::autograd::GraphTask>& graph_task,
                           const NodePtr& fn, std::exception& e) override {
    inner_.thread_on_exception(graph_task, fn, e);
  }
  void thread_init(int device, const std::shared_ptr<torch::autograd::ReadyQueue>& ready_queue,
                   bool should_increment) override {
    inner_.thread_init(device, ready_queue, should_increment);
  }

 private:
  explicit HookingEngine(Engine& inner) : inner_(inner) {}
  static inline std::atomic<Engine*> reaches_us_{
      nullptr};  // the default engine, when last looked at
  static inline thread_local bool reached_ = false;
  Engine& inner_;
};

HookScope::HookScope() : outer_(innermost) {
  TORCH_CHECK(SavedTensorDefaultHooks::is_enabled(),
              "recoup: cannot checkpoint here, saved tensor hooks are disabled: ",
              SavedTensorDefaultHooks::get_disabled_error_message().value_or(""));
  HookingEngine::install();
  const auto& python = SavedTensorDefaultHooks::get_tls_state();
  if (!python.stack.empty()) {
    python_before_ = python;
    auto none = python;
    none.stack = {};
    SavedTensorDefaultHooks::set_tls_state(none);
  }
  innermost = this;
}

HookScope::~HookScope() {
  innermost = outer_;
  if (python_before_) SavedTensorDefaultHooks::set_tls_state(*python_before_);
}

void HookScope::warn_if_bypassed(const std::string& name) const {
  if (asked_ || innermost != this || !SavedTensorDefaultHooks::is_enabled()) return;
  if (HookingEngine::reached_through(Engine::get_default_engine())) return;  // nothing was saved
  TORCH_WARN_ONCE(
      "recoup: ", name,
      ": autograd's engine was replaced while this forward ran (by `import torch`?), so "
      "what it saved is kept and not recomputed; import torch before the first "
      "checkpoint");
}

std::unique_ptr<SavedVariableHooks> current_hooks() {
  return Engine::get_default_engine().get_default_saved_variable_hooks();
}

}  // namespace recoup
