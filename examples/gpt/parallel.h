// Data, tensor and pipeline parallelism for the example trainer, over c10d: NCCL on GPUs, Gloo on
// CPUs, started by torchrun (torchrun --no-python --nproc-per-node 2 build/gpt_trainer
// --tensor-parallel 2 ...).
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace gpt {

// Ranks that communicate; of size 1 where there is nobody else. Collectives are counted.
class Group {
 public:
  Group() = default;
  Group(c10::intrusive_ptr<c10d::Backend> backend, int rank, int size)
      : backend_(std::move(backend)), rank_(rank), size_(size) {}

  int rank() const { return rank_; }
  int size() const { return size_; }
  std::int64_t collectives() const { return collectives_; }

  // Sums `t` over the group, in place.
  void all_reduce(at::Tensor t);
  // The ranks' equally long 1-d tensors, one after another.
  at::Tensor all_gather(const at::Tensor& t);
  // The largest of each over the group, in place; not counted.
  void all_max(std::int64_t* values, std::size_t count, at::Device device);

  // To and from the rank of that number in the group. What is sent must live until the work that
  // comes back has been waited for.
  c10::intrusive_ptr<c10d::Work> send(const at::Tensor& t, int to);
  void receive(const at::Tensor& t, int from);

 private:
  c10::intrusive_ptr<c10d::Backend> backend_;
  int rank_ = 0, size_ = 1;
  std::int64_t collectives_ = 0;
};

// This process among all, by the environment that torchrun sets; alone without it. Neighbouring
// ranks form a tensor-parallel group; those of a pipeline stage follow each other, and ranks of the
// same place in their tensor-parallel group and stage form a data-parallel one. The rank in
// `pipeline` is the stage.
struct World {
  int rank = 0, size = 1, local_rank = 0;
  std::shared_ptr<Group> tensor = std::make_shared<Group>(), data = std::make_shared<Group>(),
                         pipeline = std::make_shared<Group>();
  bool first_stage() const { return pipeline->rank() == 0; }
  bool last_stage() const { return pipeline->rank() + 1 == pipeline->size(); }
  static World join(int tensor_parallel, int pipeline_parallel, const std::string& device);
};

// Identity whose backward sums gradients over the group: where a replicated tensor enters a part
// that each rank has its own share of.
at::Tensor enter(const at::Tensor& x, const std::shared_ptr<Group>& group);
// Sum over the group whose backward is the identity: where the shares' results leave it.
at::Tensor leave(const at::Tensor& x, const std::shared_ptr<Group>& group);

// y = x W^T + b with the rows of W (outputs) spread over the group. `blocks`: how many equal blocks
// of outputs are each spread by themselves (3 for a fused query, key, value). Initialised as the
// whole.
struct ColumnLinearImpl : torch::nn::Module {
  ColumnLinearImpl(std::int64_t in, std::int64_t out, std::shared_ptr<Group> group, int blocks = 1);
  at::Tensor forward(const at::Tensor& x) { return at::linear(enter(x, group), weight, bias); }
  std::shared_ptr<Group> group;
  at::Tensor weight, bias;
};
TORCH_MODULE(ColumnLinear);

// The same with the columns of W (inputs) spread; one all-reduce in forward.
struct RowLinearImpl : torch::nn::Module {
  RowLinearImpl(std::int64_t in, std::int64_t out, std::shared_ptr<Group> group);
  at::Tensor forward(const at::Tensor& x);
  std::shared_ptr<Group> group;
  at::Tensor weight, bias;
};
TORCH_MODULE(RowLinear);

}  // namespace gpt
