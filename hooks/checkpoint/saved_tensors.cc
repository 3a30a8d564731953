#include "saved_tensors.h"

#include <mutex>

namespace recoup {

using torch_private::Engine;
using torch_private::NodePtr;
using torch_private::SavedTensorDefaultHooks;
using torch_private::SavedVariableHooks;

namespace {
thread_local HookScope* innermost = nullptr;
}  // namespace

class HookingEngine final : public Engine {
 public:
  static void install() {
    static std::once_flag once;
    std::call_once(once, [] {
      // Never freed: threads may still run backward while the process ends.
      instance_ = new HookingEngine(Engine::get_default_engine());
      torch_private::set_default_engine_stub([]() -> Engine& { return *instance_; });
    });
  }

  std::unique_ptr<SavedVariableHooks> get_default_saved_variable_hooks() override {
    auto inner = inner_.get_default_saved_variable_hooks();
    return inner || innermost == nullptr ? std::move(inner) : innermost->make();
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
  static inline HookingEngine* instance_ = nullptr;
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

std::unique_ptr<SavedVariableHooks> current_hooks() {
  return Engine::get_default_engine().get_default_saved_variable_hooks();
}

}  // namespace recoup
