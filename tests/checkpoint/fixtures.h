// What the checkpoint tests share: a small MLP, gradients with and without a checkpoint, and counts
// of operator calls.
#pragma once

#include <ATen/RedispatchFunctions.h>
#include <gtest/gtest.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <atomic>
#include <string>

#include "recoup/checkpoint/checkpoint.h"

namespace recoup::testing {

struct MlpImpl : torch::nn::Module {
  MlpImpl(std::int64_t hidden, std::int64_t ffn, double dropout = 0.0)
      : fc1(register_module("fc1", torch::nn::Linear(hidden, ffn))),
        fc2(register_module("fc2", torch::nn::Linear(ffn, hidden))),
        dropout(dropout) {}
  at::Tensor forward(const at::Tensor& x) {
    auto h = at::gelu(fc1(x));
    if (dropout > 0) h = at::dropout(h, dropout, is_training());
    return fc2(h);
  }
  torch::nn::Linear fc1, fc2;
  double dropout;
};
using Mlp = std::shared_ptr<MlpImpl>;

inline Mlp seeded_mlp(double dropout = 0.0) {
  torch::manual_seed(2);
  return std::make_shared<MlpImpl>(8, 32, dropout);
}
inline Forward of(const Mlp& mlp) {
  return [mlp](const Tensors& in) -> Tensors { return {mlp->forward(in[0])}; };
}
inline at::Tensor input(c10::IntArrayRef sizes = {3, 5, 8}) {
  torch::manual_seed(1);
  return torch::randn(sizes, torch::requires_grad());
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() == b.defined() && (!a.defined() || at::equal(a, b));
}

// The outputs of a run, then the gradients of its inputs and of the module's parameters.
using Results = std::vector<at::Tensor>;

inline void expect_same_bits(const Results& a, const Results& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << "tensor " << i;
}

// Runs forward, plain or checkpointed, and backward of the sum of all its outputs that need grad.
inline Results run(const Forward& forward, const Tensors& inputs, const Tensors& parameters,
                   const CheckpointOptions* options) {
  torch::manual_seed(7);
  for (const auto& list : {inputs, parameters}) {
    for (auto t : list) t.mutable_grad() = at::Tensor();
  }
  auto outputs = options != nullptr ? checkpoint(forward, inputs, *options) : forward(inputs);
  at::Tensor loss;
  for (const auto& out : outputs) {
    if (!out.requires_grad()) continue;
    // Weighted, so that no gradient is all ones.
    const auto part =
        (out * at::arange(1, out.numel() + 1, out.options()).view_as(out)).sum().to(at::kDouble);
    loss = loss.defined() ? loss + part : part;
  }
  if (loss.defined()) loss.backward();
  Results results;
  for (const auto& out : outputs) results.push_back(out.detach());
  for (const auto& list : {inputs, parameters}) {
    for (const auto& t : list) results.push_back(t.grad());
  }
  return results;
}

// Checks that a checkpoint changes neither an output nor a gradient by a single bit.
inline void expect_transparent(const Forward& forward, const Tensors& inputs,
                               const Tensors& parameters = {}) {
  const CheckpointOptions options;
  expect_same_bits(run(forward, inputs, parameters, nullptr),
                   run(forward, inputs, parameters, &options));
  CheckpointOptions to_the_end;
  to_the_end.early_stop = false;
  expect_same_bits(run(forward, inputs, parameters, nullptr),
                   run(forward, inputs, parameters, &to_the_end));
}

// Counts the runs of kernels, in all threads, while it lives. Not the calls of operators: one whose
// saving ends a recompute is called but never runs its kernel.
class KernelCounts {
 public:
  KernelCounts()
      : library_(torch::Library::IMPL, "aten", c10::DispatchKey::ADInplaceOrView, __FILE__,
                 __LINE__) {
    for (auto* count : {&addmm, &mm, &gelu}) *count = 0;
    // Below autograd, above the kernels.
    library_.impl("addmm", [](c10::DispatchKeySet ks, const at::Tensor& self, const at::Tensor& a,
                              const at::Tensor& b, const at::Scalar& beta,
                              const at::Scalar& alpha) {
      ++addmm;
      return at::redispatch::addmm(ks & c10::after_ADInplaceOrView_keyset, self, a, b, beta, alpha);
    });
    library_.impl("mm", [](c10::DispatchKeySet ks, const at::Tensor& a, const at::Tensor& b) {
      ++mm;
      return at::redispatch::mm(ks & c10::after_ADInplaceOrView_keyset, a, b);
    });
    library_.impl(
        "gelu", [](c10::DispatchKeySet ks, const at::Tensor& x, c10::string_view approximate) {
          ++gelu;
          return at::redispatch::gelu(ks & c10::after_ADInplaceOrView_keyset, x, approximate);
        });
  }
  static inline std::atomic<int> addmm, mm, gelu;

 private:
  torch::Library library_;
};

// The text of the exception that `f` throws, empty where it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return {};
}

}  // namespace recoup::testing
