// patches/infinitrain/sources/recompute.cc alone: operations that save as Function::Apply does,
// patched.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "infini_train/include/autocast.h"
#include "infini_train/include/autograd/function.h"
#include "infini_train/include/autograd/grad_mode.h"
#include "infini_train/include/autograd/recompute.h"
#include "infini_train/include/tensor.h"

using namespace infini_train;
using namespace infini_train::autograd;
using recompute::Tensors;
#define CHECK(c)                                        \
  if (!(c)) {                                           \
    std::printf("failed: %s, line %d\n", #c, __LINE__); \
    std::exit(1);                                       \
  }

int kernels = 0;
struct Saved {
  std::shared_ptr<void> state;
  FunctionCtx::SavedTensorHooks hooks;
};
using Graph = std::vector<Saved>;

std::shared_ptr<Tensor> make(float value, size_t size = 1) {
  return std::make_shared<Tensor>(std::vector<float>(size, value));
}

// Doubles; saves its input, or its output as a tensor of `size` elements.
std::shared_ptr<Tensor> op(const std::shared_ptr<Tensor>& x, Graph& graph, bool save_output,
                           size_t size = 1) {
  recompute::BeforeForward({x});
  ++kernels;
  auto y = make((*x->value)[0] * 2 + tls_autocast_context.on);
  const auto hooks = FunctionCtx::hooks.back();
  auto state = hooks.pack(save_output ? make((*y->value)[0], size) : x);
  if (recompute::IsRecomputing()) {
    y->set_requires_grad(x->requires_grad());
    return y;
  }
  graph.push_back({state, hooks});
  return y;
}
float read(const Saved& s) { return (*s.hooks.unpack(s.state)->value)[0]; }

int main() {
  Graph graph;
  const auto x = make(3);
  x->set_requires_grad(true);
  int runs = 0;
  const auto mlp = [&](const Tensors& in) -> Tensors {
    ++runs;
    return {op(op(op(in[0], graph, false), graph, true), graph, false)};
  };
  const auto y = recompute::Checkpoint(mlp, {x}, "layer 1 mlp");
  CHECK((*y[0]->value)[0] == 24 && runs == 1 && kernels == 3);
  tls_autocast_context.on = true;  // of the backward, not of the forward
  {
    const NoGradGuard backward;
    CHECK(read(graph[2]) == 12 && read(graph[1]) == 12 && read(graph[0]) == 3);
    CHECK(!GradMode::IsEnabled());
  }
  CHECK(tls_autocast_context.on);
  tls_autocast_context.on = false;
  CHECK(runs == 2 && kernels == 5);  // the last operation did not run again
  graph.clear();

  // Its last tensor an output: all of it runs again. A null input goes through.
  recompute::Checkpoint(
      [&](const Tensors& in) -> Tensors {
        CHECK(in[1] == nullptr);
        return {op(op(in[0], graph, false), graph, true)};
      },
      {x, nullptr}, "r");
  kernels = 0;
  CHECK(read(graph[1]) == 12 && kernels == 2);
  graph.clear();

  // A nested region, and an error.
  recompute::Checkpoint(
      [&](const Tensors& in) {
        return recompute::Checkpoint(mlp, {op(in[0], graph, false)}, "inner");
      },
      {x}, "outer");
  CHECK(read(graph[3]) == 24 && read(graph[0]) == 3);
  graph.clear();
  int calls = 0;
  recompute::Checkpoint(
      [&](const Tensors& in) -> Tensors { return {op(in[0]->Detach(), graph, true, ++calls)}; },
      {x}, "layer 2 mlp");
  try {
    read(graph[0]);
    CHECK(false);
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
  }
  graph.clear();

  // Without grad nothing is checkpointed.
  const NoGradGuard no_grad;
  kernels = 0;
  FunctionCtx::SavedTensorHooksGuard plain(
      {[](const std::shared_ptr<Tensor>& t) -> std::shared_ptr<void> { return t; }, {}});
  recompute::Checkpoint([&](const Tensors& in) -> Tensors { return {op(in[0], graph, true)}; }, {x},
                        "r");
  CHECK(kernels == 1);
  std::puts("all right");
}
