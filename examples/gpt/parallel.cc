#include "parallel.h"

#include <cstdlib>
#include <stdexcept>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace gpt {
namespace {

int number(const char* variable, int otherwise) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::atoi(value);
}

c10::intrusive_ptr<c10d::Backend> backend(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                          int size, const std::string& device) {
#ifdef USE_C10D_NCCL
  if (device == "cuda") return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size);
#endif
  auto options = c10d::ProcessGroupGloo::Options::create();
  options->devices = {c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")};
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
}

// The group travels through autograd as a number; modules keep it alive.
Group* group_of(const torch::autograd::AutogradContext* ctx) {
  return reinterpret_cast<Group*>(ctx->saved_data.at("group").toInt());
}

struct Enter : torch::autograd::Function<Enter> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            std::int64_t group) {
    ctx->saved_data["group"] = group;
    return x.view_as(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list g) {
    auto sum = g[0].clone(at::MemoryFormat::Contiguous);
    group_of(ctx)->all_reduce(sum);
    return {sum, at::Tensor()};
  }
};

struct Leave : torch::autograd::Function<Leave> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x,
                            std::int64_t group) {
    auto sum = x.clone(at::MemoryFormat::Contiguous);
    reinterpret_cast<Group*>(group)->all_reduce(sum);
    return sum;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list g) {
    return {g[0], at::Tensor()};
  }
};

// This rank's share of a whole parameter along `dim`, in `blocks` blocks.
at::Tensor share(const at::Tensor& whole, std::int64_t dim, const Group& group, int blocks = 1) {
  if (group.size() == 1) return whole.detach().clone();
  const auto length = whole.size(dim) / blocks / group.size();
  TORCH_CHECK(length * blocks * group.size() == whole.size(dim), "a dimension of ", whole.size(dim),
              " in ", blocks, " blocks does not spread over ", group.size(), " ranks");
  std::vector<at::Tensor> parts;
  for (const auto& block : whole.detach().chunk(blocks, dim)) {
    parts.push_back(block.narrow(dim, group.rank() * length, length));
  }
  return at::cat(parts, dim).clone();
}

}  // namespace

namespace {
// The same memory without owning it: a backend's thread may hold its tensors a moment longer than
// the collective lasts, and must not be the one that frees them (activation bytes are counted by
// thread).
at::Tensor borrowed(const at::Tensor& t) {
  return at::from_blob(t.mutable_data_ptr(), t.sizes(), t.options());
}
}  // namespace

void Group::all_reduce(at::Tensor t) {
  if (size_ == 1) return;
  ++collectives_;
  std::vector<at::Tensor> tensors{borrowed(t)};
  backend_->allreduce(tensors)->wait();
}

at::Tensor Group::all_gather(const at::Tensor& t) {
  if (size_ == 1) return t;
  ++collectives_;
  const auto whole = at::empty({size_, t.numel()}, t.options());
  std::vector<std::vector<at::Tensor>> parts(1);
  for (int r = 0; r < size_; ++r) parts[0].push_back(borrowed(whole[r]));
  std::vector<at::Tensor> tensors{borrowed(t)};
  backend_->allgather(parts, tensors)->wait();
  return whole.flatten();
}

void Group::all_max(std::int64_t* values, std::size_t count, at::Device device) {
  if (size_ == 1) return;
  const auto host = at::from_blob(values, {static_cast<std::int64_t>(count)}, at::kLong);
  std::vector<at::Tensor> tensors{device.is_cpu() ? host : host.to(device)};
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  backend_->allreduce(tensors, options)->wait();
  host.copy_(tensors[0]);
}

c10::intrusive_ptr<c10d::Work> Group::send(const at::Tensor& t, int to) {
  std::vector<at::Tensor> tensors{borrowed(t)};
  return backend_->send(tensors, to, 0);
}

void Group::receive(const at::Tensor& t, int from) {
  std::vector<at::Tensor> tensors{borrowed(t)};
  backend_->recv(tensors, from, 0)->wait();
}

World World::join(int tensor_parallel, int pipeline_parallel, const std::string& device) {
  World world;
  world.rank = number("RANK", 0);
  world.size = number("WORLD_SIZE", 1);
  world.local_rank = number("LOCAL_RANK", 0);
  if (world.size % (tensor_parallel * pipeline_parallel) != 0) {
    const auto pipeline = pipeline_parallel > 1
                              ? " times --pipeline-parallel " + std::to_string(pipeline_parallel)
                              : std::string();
    throw std::invalid_argument("--tensor-parallel " + std::to_string(tensor_parallel) + pipeline +
                                " does not divide the " + std::to_string(world.size) +
                                " processes (start them with torchrun --no-python)");
  }
  if (world.size == 1) return world;

  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(number("MASTER_PORT", 29500));
  // torchrun itself serves the store; without it rank 0 does.
  const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  options.isServer = world.rank == 0 && (agent == nullptr || std::string(agent) != "True");
  const char* host = std::getenv("MASTER_ADDR");
  const auto store =
      c10::make_intrusive<c10d::TCPStore>(host != nullptr ? host : "127.0.0.1", options);
  const auto group = [&](const std::string& name, int rank, int size) {
    if (size == 1) return std::make_shared<Group>();
    const auto own = c10::make_intrusive<c10d::PrefixStore>("gpt/" + name, store);
    return std::make_shared<Group>(backend(own, rank, size, device), rank, size);
  };
  const auto name = [](const char* kind, int a, int b) {
    return std::string(kind) + "/" + std::to_string(a) + "/" + std::to_string(b);
  };
  const int data_parallel = world.size / tensor_parallel / pipeline_parallel;
  const int inner = world.rank % tensor_parallel;
  const int replica = world.rank / tensor_parallel % data_parallel;
  const int stage = world.rank / tensor_parallel / data_parallel;
  world.tensor = group(name("tensor", stage, replica), inner, tensor_parallel);
  world.data = group(name("data", stage, inner), replica, data_parallel);
  world.pipeline = group(name("pipeline", replica, inner), stage, pipeline_parallel);
  return world;
}

at::Tensor enter(const at::Tensor& x, const std::shared_ptr<Group>& group) {
  return group->size() == 1 ? x : Enter::apply(x, reinterpret_cast<std::int64_t>(group.get()));
}

at::Tensor leave(const at::Tensor& x, const std::shared_ptr<Group>& group) {
  return group->size() == 1 ? x : Leave::apply(x, reinterpret_cast<std::int64_t>(group.get()));
}

ColumnLinearImpl::ColumnLinearImpl(std::int64_t in, std::int64_t out, std::shared_ptr<Group> g,
                                   int blocks)
    : group(std::move(g)) {
  const torch::nn::Linear whole(in, out);
  weight = register_parameter("weight", share(whole->weight, 0, *group, blocks));
  bias = register_parameter("bias", share(whole->bias, 0, *group, blocks));
}

RowLinearImpl::RowLinearImpl(std::int64_t in, std::int64_t out, std::shared_ptr<Group> g)
    : group(std::move(g)) {
  const torch::nn::Linear whole(in, out);
  weight = register_parameter("weight", share(whole->weight, 1, *group));
  bias = register_parameter("bias", whole->bias.detach().clone());
}

at::Tensor RowLinearImpl::forward(const at::Tensor& x) {
  if (group->size() == 1) return at::linear(x, weight, bias);
  return leave(at::linear(x, weight), group) + bias;
}

}  // namespace gpt
