#include "infini_train/include/autograd/function.h"

#include <set>

#include "infini_train/include/autocast.h"
#include "infini_train/include/autograd/grad_mode.h"
#include "infini_train/include/tensor.h"

namespace infini_train::autograd {

void FunctionCtx::Save(const Tensors &tensors) {
    entries_.clear();
    for (const auto &t : tensors) {
        if (hooks.empty()) {
            entries_.push_back({t, nullptr, {}});
        } else {
            entries_.push_back({nullptr, hooks.back().pack(t), hooks.back()});
        }
    }
}

Tensors FunctionCtx::Saved() const {
    Tensors saved;
    for (const auto &e : entries_) { saved.push_back(e.tensor ? e.tensor : e.hooks.unpack(e.state)); }
    return saved;
}

Tensors Function::Apply(const Tensors &input_tensors) {
    auto compute_inputs = input_tensors;
    for (auto &t : compute_inputs) { tls_autocast_context.Autocast(type_, t); }

    ++runs[type_];
    Tensors output_tensors{std::make_shared<Tensor>(Forward(compute_inputs))};
    const auto &out = output_tensors[0];
    if (GradMode::IsEnabled()) {
        Tensors needs = Needs(compute_inputs, out);
        for (auto &t : needs) { t = t == out ? t->Detach() : t; }
        ctx_.Save(needs);
    }

    if (!GradMode::IsEnabled()) {
        return output_tensors;
    }

    bool output_requires_grad = false;
    for (const auto &t : input_tensors) { output_requires_grad |= t->requires_grad(); }
    out->set_requires_grad(output_requires_grad);
    if (!output_requires_grad) {
        return output_tensors;
    }
    static int count = 0;
    number_ = ++count;
    for (const auto &t : input_tensors) {
        next_.push_back(t->grad_fn);
        inputs_.push_back(t->grad_fn == nullptr ? t : nullptr); // a leaf gathers its gradient
    }
    out->grad_fn = shared_from_this();
    return output_tensors;
}

namespace {
void Add(std::vector<float> &to, const std::vector<float> &more) {
    to.resize(more.size());
    for (size_t i = 0; i < more.size(); ++i) { to[i] += more[i]; }
}
} // namespace

void Backward(const std::shared_ptr<Tensor> &loss) {
    const NoGradGuard no_grad;
    const auto later = [](const auto &a, const auto &b) { return a->number_ > b->number_; };
    std::set<std::shared_ptr<Function>, decltype(later)> ready(later);
    Add(loss->grad_fn->grad_, std::vector<float>(loss->value->size(), 1.0f));
    ready.insert(loss->grad_fn);
    while (!ready.empty()) {
        const auto f = *ready.begin();
        ready.erase(ready.begin());
        const auto grads = f->Backward(f->ctx_.Saved(), f->grad_);
        f->ctx_.Save({}); // dropped, as by upstream
        for (size_t i = 0; i < grads.size(); ++i) {
            if (f->next_[i] != nullptr) {
                Add(f->next_[i]->grad_, grads[i]);
                ready.insert(f->next_[i]);
            } else if (f->inputs_[i]->requires_grad()) {
                Add(f->inputs_[i]->grad, grads[i]);
            }
        }
    }
}
} // namespace infini_train::autograd
