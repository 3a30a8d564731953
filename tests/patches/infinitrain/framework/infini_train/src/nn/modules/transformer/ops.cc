#include "infini_train/include/nn/modules/transformer/ops.h"

#include <cmath>

#include "infini_train/include/autograd/function.h"

namespace infini_train {
namespace {
using autograd::Tensors;

// An operation from four functions.
struct Op : autograd::Function {
    using Value = std::vector<float>;
    std::function<Value(const Tensors &)> forward;
    std::function<Tensors(const Tensors &, const std::shared_ptr<Tensor> &)> needs;
    std::function<std::vector<Value>(const Tensors &, const Value &)> backward;
    Op(const std::string &type, decltype(forward) f, decltype(needs) n, decltype(backward) b)
        : Function(type), forward(f), needs(n), backward(b) {}
    Value Forward(const Tensors &in) override { return forward(in); }
    Tensors Needs(const Tensors &in, const std::shared_ptr<Tensor> &out) override { return needs(in, out); }
    std::vector<Value> Backward(const Tensors &saved, const Value &grad) override { return backward(saved, grad); }
};

template <class F> std::vector<float> Each(size_t n, F f) {
    std::vector<float> out(n);
    for (size_t i = 0; i < n; ++i) { out[i] = f(i); }
    return out;
}
const auto kInputs = [](const Tensors &in, const auto &) { return in; };
const auto kOutput = [](const Tensors &, const auto &out) { return Tensors{out}; };
const auto kNothing = [](const Tensors &, const auto &) { return Tensors{}; };
float At(const std::shared_ptr<Tensor> &t, size_t i) { return (*t->value)[i]; }

std::shared_ptr<Tensor> Multiply(const char *type, const std::shared_ptr<Tensor> &a, const std::shared_ptr<Tensor> &b) {
    return std::make_shared<Op>(
               type,
               [](const Tensors &in) {
                   return Each(in[0]->value->size(), [&](size_t i) { return At(in[0], i) * At(in[1], i); });
               },
               kInputs,
               [](const Tensors &s, const auto &g) {
                   return std::vector<std::vector<float>>{Each(g.size(), [&](size_t i) { return g[i] * At(s[1], i); }),
                                      Each(g.size(), [&](size_t i) { return g[i] * At(s[0], i); })};
               })
        ->Apply({a, b})[0];
}
std::shared_ptr<Tensor> Scale(const char *type, const std::shared_ptr<Tensor> &a, float by) {
    return std::make_shared<Op>(
               type,
               [by](const Tensors &in) {
                   return Each(in[0]->value->size(), [&](size_t i) { return At(in[0], i) * by; });
               },
               kNothing,
               [by](const Tensors &, const auto &g) {
                   return std::vector<std::vector<float>>{Each(g.size(), [&](size_t i) { return g[i] * by; })};
               })
        ->Apply({a})[0];
}
// tanh, which saves its input or its output.
std::shared_ptr<Tensor> Tanh(const char *type, const std::shared_ptr<Tensor> &a, bool save_output) {
    const auto slope = [](float t) { return 1 - t * t; };
    return std::make_shared<Op>(
               type,
               [](const Tensors &in) {
                   return Each(in[0]->value->size(), [&](size_t i) { return std::tanh(At(in[0], i)); });
               },
               save_output ? std::function<Tensors(const Tensors &, const std::shared_ptr<Tensor> &)>(kOutput)
                           : std::function<Tensors(const Tensors &, const std::shared_ptr<Tensor> &)>(kInputs),
               [=](const Tensors &s, const auto &g) {
                   return std::vector<std::vector<float>>{Each(g.size(), [&](size_t i) {
                       return g[i] * slope(save_output ? At(s[0], i) : std::tanh(At(s[0], i)));
                   })};
               })
        ->Apply({a})[0];
}
} // namespace

std::shared_ptr<Tensor> Tensor::Matmul(const std::shared_ptr<Tensor> &other) {
    auto self = std::make_shared<Tensor>(*this);
    return Multiply("Matmul", self, other);
}
std::shared_ptr<Tensor> Tensor::MaskedFill(const std::shared_ptr<Tensor> &, float) {
    return Scale("MaskedFill", std::make_shared<Tensor>(*this), 1);
}
std::shared_ptr<Tensor> Tensor::Transpose(int, int) { return std::make_shared<Tensor>(*this); }
std::shared_ptr<Tensor> operator*(const std::shared_ptr<Tensor> &a, const std::shared_ptr<Tensor> &b) {
    return Multiply("Mul", a, b);
}
std::shared_ptr<Tensor> operator*(const std::shared_ptr<Tensor> &a, double by) { return Scale("Scale", a, by); }
std::shared_ptr<Tensor> operator+(const std::shared_ptr<Tensor> &a, const std::shared_ptr<Tensor> &b) {
    return std::make_shared<Op>(
               "Add",
               [](const Tensors &in) {
                   return Each(in[0]->value->size(), [&](size_t i) { return At(in[0], i) + At(in[1], i); });
               },
               kNothing, [](const Tensors &, const auto &g) { return std::vector<std::vector<float>>{g, g}; })
        ->Apply({a, b})[0];
}

namespace nn {
std::shared_ptr<Tensor> Softmax(const std::shared_ptr<Tensor> &x) { return Tanh("Softmax", x, true); }
std::vector<std::shared_ptr<Tensor>> &Parameters() {
    static std::vector<std::shared_ptr<Tensor>> all;
    return all;
}
Linear::Linear(const char *type) : type_(type) {
    const auto n = Parameters().size();
    weight = std::make_shared<Tensor>(std::vector<float>{0.9f + 0.03f * (n % 7)}, true);
    Parameters().push_back(weight);
}
Module::Tensors Linear::Forward(const Tensors &x) {
    return std::make_shared<Op>(
               type_,
               [](const Tensors &in) {
                   return Each(in[0]->value->size(), [&](size_t i) { return At(in[0], i) * At(in[1], 0); });
               },
               kInputs,
               [](const Tensors &s, const auto &g) {
                   float w = 0;
                   for (size_t i = 0; i < g.size(); ++i) { w += g[i] * At(s[0], i); }
                   return std::vector<std::vector<float>>{Each(g.size(), [&](size_t i) { return g[i] * At(s[1], 0); }),
                                      std::vector<float>{w}};
               })
        ->Apply({x[0], weight});
}
Module::Tensors Activation::Forward(const Tensors &x) { return {Tanh("Activation", x[0], false)}; }
Module::Tensors Norm::Forward(const Tensors &x) { return {Tanh("Norm", x[0], true)}; }
} // namespace nn
} // namespace infini_train
