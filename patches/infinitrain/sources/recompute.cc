#include "infini_train/include/autograd/recompute.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "infini_train/include/autocast.h"
#include "infini_train/include/autograd/function.h"
#include "infini_train/include/autograd/grad_mode.h"
#include "infini_train/include/tensor.h"
#include "recoup/checkpoint/recompute.h"

namespace infini_train::autograd::recompute {
namespace {

using TensorPtr = std::shared_ptr<Tensor>;

class Region;

// InfiniTrain's side of a recoup::Recompute; see recoup/checkpoint/recompute.h for what each function is to do. Tensors
// have no version counters here, so a change in place goes unnoticed. Functions save after their
// kernels have run, and no graph is built in a recompute, so each save may end it. Hence the defaults.
class Framework : public recoup::FrameworkDefaults {
public:
    using Tensor = TensorPtr;
    struct Record {
        std::vector<int64_t> dims;
        DataType dtype;
        Device device;
    };
    using Held = TensorPtr;

    Framework(Region &region, std::string name) : region_(region), name_(std::move(name)) {}

    Record describe(const TensorPtr &t) const { return {t->Dims(), t->Dtype(), t->GetDevice()}; }
    std::string mismatch(const Record &record, const TensorPtr &t) const {
        if (record.dims == t->Dims() && record.dtype == t->Dtype() && record.device == t->GetDevice()) {
            return {};
        }
        return "the forward saved " + Text(record.dims, record.dtype) + ", the recompute "
             + Text(t->Dims(), t->Dtype()) + "; the forward must compute the same thing when it is run again";
    }
    Held hold(const TensorPtr &t) const { return t; }
    bool read(const Held &held, TensorPtr *t, std::string *) const {
        *t = held;
        return held != nullptr;
    }
    void recompute();
    const std::string &name() const { return name_; }

private:
    static std::string Text(const std::vector<int64_t> &dims, DataType dtype) {
        std::string text = kDataTypeToDesc.at(dtype) + "[";
        for (size_t i = 0; i < dims.size(); ++i) { text += (i > 0 ? ", " : "") + std::to_string(dims[i]); }
        return text + "]";
    }

    Region &region_;
    std::string name_;
};

// Owned by the saved tensors of its forward.
class Region : public recoup::Recompute<Framework> {
public:
    Region(std::function<Tensors(const Tensors &)> forward, const Tensors &inputs, const std::string &name)
        : Recompute(/*early_stop=*/true, *this, name), forward_(std::move(forward)), autocast_(tls_autocast_context) {
        for (const auto &input : inputs) {
            if (input == nullptr) {
                inputs_.push_back(nullptr);
                continue;
            }
            // Not the tensor itself, which may lead back to this region through its history.
            inputs_.push_back(input->Detach());
            inputs_.back()->set_requires_grad(input->requires_grad());
        }
    }

    // Which function of the forward saved a slot, and as which of its inputs (-1: as something else).
    struct Origin {
        size_t function;
        int input;
    };
    std::vector<Origin> origins;

    Tensors Run(const Tensors &inputs) const { return forward_(inputs); }

    void RunAgain() const {
        const auto autocast = std::exchange(tls_autocast_context, autocast_);
        try {
            forward_(inputs_);
        } catch (...) {
            tls_autocast_context = autocast;
            throw;
        }
        tls_autocast_context = autocast;
    }

private:
    std::function<Tensors(const Tensors &)> forward_;
    decltype(tls_autocast_context) autocast_;
    Tensors inputs_;
};

// A forward or a recompute under way in this thread; they nest.
struct Scope {
    Region *region;
    bool recompute;
    size_t function = 0;                        // how many have begun
    std::vector<const Tensor *> function_inputs; // of the last of them
    Scope *outer;

    Scope(Region *region, bool recompute) : region(region), recompute(recompute), outer(current) { current = this; }
    ~Scope() { current = outer; }
    static thread_local Scope *current;
};
thread_local Scope *Scope::current = nullptr;

// What a saved tensor leaves behind; dropped by autograd when the function's backward is done.
struct Slot {
    Slot(std::shared_ptr<Region> region, size_t index) : region(std::move(region)), index(index) {}
    ~Slot() { region->release(index); }
    Slot(const Slot &) = delete;
    Slot &operator=(const Slot &) = delete;

    const std::shared_ptr<Region> region;
    const size_t index;
};

void Framework::recompute() {
    const EnableGradGuard grad;
    const FunctionCtx::SavedTensorHooksGuard hooks({
        [this](const TensorPtr &t) -> std::shared_ptr<void> {
            region_.refill(t);
            return t;
        },
        [](const std::shared_ptr<void> &t) { return std::static_pointer_cast<infini_train::Tensor>(t); },
    });
    const Scope scope(&region_, true);
    region_.RunAgain();
}

} // namespace

Tensors Checkpoint(std::function<Tensors(const Tensors &)> forward, const Tensors &inputs, const std::string &name) {
    if (!GradMode::IsEnabled()) {
        return forward(inputs);
    }
    const auto region = std::make_shared<Region>(std::move(forward), inputs, name);
    const FunctionCtx::SavedTensorHooksGuard hooks({
        [region](const TensorPtr &t) -> std::shared_ptr<void> {
            const auto &scope = *Scope::current;
            const auto &in = scope.function_inputs;
            const auto at = std::find(in.begin(), in.end(), t.get());
            region->origins.push_back({scope.function, at == in.end() ? -1 : static_cast<int>(at - in.begin())});
            return std::make_shared<Slot>(region, region->record(t));
        },
        [](const std::shared_ptr<void> &slot) {
            const auto &s = *std::static_pointer_cast<Slot>(slot);
            return s.region->take(s.index);
        },
    });
    const Scope scope(region.get(), false);
    auto outputs = region->Run(inputs);
    region->forward_done();
    return outputs;
}

void BeforeForward(const Tensors &inputs) {
    auto *scope = Scope::current;
    if (scope == nullptr || !GradMode::IsEnabled()) {
        return;
    }
    ++scope->function;
    scope->function_inputs.clear();
    for (const auto &input : inputs) { scope->function_inputs.push_back(input.get()); }
    if (!scope->recompute) {
        return;
    }
    const auto &origins = scope->region->origins;
    const auto mine = [&](const Region::Origin &o) { return o.function == scope->function; };
    const auto first = std::find_if(origins.begin(), origins.end(), mine);
    const auto last = std::find_if_not(first, origins.end(), mine);
    if (first == last || !scope->region->is_last(last - origins.begin() - 1)
        || std::any_of(first, last, [](const Region::Origin &o) { return o.input < 0; })) {
        return;
    }
    for (auto origin = first; origin != last; ++origin) { scope->region->refill(inputs.at(origin->input)); }
}

bool IsRecomputing() { return Scope::current != nullptr && Scope::current->recompute; }

} // namespace infini_train::autograd::recompute
