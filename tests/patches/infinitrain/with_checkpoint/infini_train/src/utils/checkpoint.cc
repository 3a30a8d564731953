// A checkpoint that recomputes without a graph, under no-grad, all of the forward.
#include "infini_train/include/utils/checkpoint.h"

#include "infini_train/include/autograd/function.h"
#include "infini_train/include/autograd/grad_mode.h"
#include "infini_train/include/tensor.h"

namespace infini_train::utils::checkpoint {
using Tensors = std::vector<std::shared_ptr<Tensor>>;
namespace {
struct Frame {
    CheckpointForwardFn forward;
    Tensors inputs, again;
    size_t saved = 0;

    void Recompute() {
        const autograd::NoGradGuard no_grad;
        const autograd::PropagateRequiresGradGuard propagate;
        const autograd::FunctionCtx::SavedTensorHooksGuard hooks(
            {[this](const std::shared_ptr<Tensor> &t) -> std::shared_ptr<void> {
                 again.push_back(t);
                 return t;
             },
             {}});
        forward(inputs);
    }
};
} // namespace

Tensors Checkpoint(const CheckpointForwardFn &forward_fn, const Tensors &inputs, bool, bool) {
    if (!autograd::GradMode::IsEnabled()) {
        return forward_fn(inputs);
    }
    const auto frame = std::make_shared<Frame>();
    frame->forward = forward_fn;
    for (const auto &t : inputs) {
        frame->inputs.push_back(t ? t->Detach() : nullptr);
        if (t) {
            frame->inputs.back()->set_requires_grad(t->requires_grad());
        }
    }
    const autograd::FunctionCtx::SavedTensorHooksGuard hooks(
        {[frame](const std::shared_ptr<Tensor> &) -> std::shared_ptr<void> {
             return std::make_shared<std::pair<std::shared_ptr<Frame>, size_t>>(frame, frame->saved++);
         },
         [](const std::shared_ptr<void> &state) {
             const auto &[frame, index] = *std::static_pointer_cast<std::pair<std::shared_ptr<Frame>, size_t>>(state);
             if (frame->again.empty()) {
                 frame->Recompute();
             }
             return frame->again.at(index);
         }});
    return forward_fn(inputs);
}
} // namespace infini_train::utils::checkpoint
