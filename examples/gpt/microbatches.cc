#include "microbatches.h"

#include <algorithm>

namespace gpt {
namespace {

// A microbatch between its forward and its backward.
struct InFlight {
  at::Tensor input, logits, output;  // the output of the last stage is the loss
  c10::intrusive_ptr<c10d::Work> sent;
};

}  // namespace

at::Tensor train(Model& model, const Config& config, const World& world, const at::Tensor& windows,
                 const Microbatches& microbatches) {
  auto& pipeline = *world.pipeline;
  const auto count = microbatches.count, rows = windows.size(0) / count;
  const int stage = pipeline.rank();
  std::vector<InFlight> flights(static_cast<std::size_t>(count));
  at::Tensor loss, gradient;  // the last one sent
  c10::intrusive_ptr<c10d::Work> gradient_sent;

  const auto forward = [&](std::int64_t m) {
    microbatches.begins(m);
    auto& f = flights[static_cast<std::size_t>(m)];
    const auto mine = windows.narrow(0, m * rows, rows);
    if (world.first_stage()) {
      f.input = mine.slice(1, 0, -1);
    } else {
      f.input = at::empty({rows, config.context, config.hidden},
                          windows.options().dtype(c10::get_default_dtype()));
      pipeline.receive(f.input, stage - 1);
      f.input.requires_grad_();
    }
    f.output = model->forward(f.input);
    if (world.last_stage()) {
      f.logits = f.output;
      f.output = at::cross_entropy_loss(f.logits.flatten(0, 1), mine.slice(1, 1).flatten());
      if (count > 1) f.output = f.output / static_cast<double>(count);
    } else {
      f.sent = pipeline.send(f.output.detach(), stage + 1);
    }
    microbatches.after_forward();
  };

  const auto backward = [&](std::int64_t m) {
    auto& f = flights[static_cast<std::size_t>(m)];
    if (world.last_stage()) {
      f.output.backward();
      loss = loss.defined() ? loss + f.output.detach() : f.output.detach().clone();
    } else {
      const auto of_output = at::empty_like(f.output);
      pipeline.receive(of_output, stage + 1);
      f.sent->wait();  // its receiver has gone through it
      f.output.backward(of_output);
    }
    if (!world.first_stage()) {
      if (gradient_sent) gradient_sent->wait();
      gradient = f.input.grad();
      gradient_sent = pipeline.send(gradient, stage - 1);
    }
    f = {};
  };

  const auto ahead = std::min<std::int64_t>(pipeline.size() - 1 - stage, count);
  for (std::int64_t m = 0; m < ahead; ++m) forward(m);
  for (std::int64_t m = 0; m < count; ++m) {
    if (m + ahead < count) forward(m + ahead);
    backward(m);
  }
  if (gradient_sent) gradient_sent->wait();
  return loss.defined() ? loss : at::zeros({}, windows.options().dtype(c10::get_default_dtype()));
}

}  // namespace gpt
