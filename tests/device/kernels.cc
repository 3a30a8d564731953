// The test device's kernels: the CPU's, run later on the stream's thread. A fallback serves every
// operator: the meta device says what comes out, memory for it is there at once, the numbers follow
// when the stream gets to it. Written by hand is only what a fallback cannot do: memory, views,
// copies and random numbers.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "device.h"

namespace testdev {
namespace {

using c10::IValue;

bool ours(const at::Tensor& t) { return t.defined() && t.device().type() == c10::kPrivateUse1; }

// The device memory of `t` as a CPU tensor that does not own it: what a kernel sees. Freed memory
// is not kept.
at::Tensor seen(const at::Tensor& t) {
  if (!ours(t)) return t;
  return at::from_blob(t.mutable_data_ptr(), t.sizes(), t.strides(),
                       at::TensorOptions().dtype(t.scalar_type()));
}

at::Tensor meta(const at::Tensor& t) {
  if (!ours(t)) return t;
  return at::empty_strided(t.sizes(), t.strides(), t.options().device(c10::kMeta));
}

// `value` with each tensor in it exchanged.
IValue exchanged(const IValue& value, const std::function<at::Tensor(const at::Tensor&)>& change,
                 c10::DeviceType device) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& t : value.toTensorVector()) list.push_back(change(t));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector()) {
      list.push_back(t ? std::optional<at::Tensor>(change(*t)) : std::nullopt);
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == c10::kPrivateUse1) return c10::Device(device);
  return value;
}

torch::jit::Stack exchanged(const torch::jit::Stack& values,
                            const std::function<at::Tensor(const at::Tensor&)>& change,
                            c10::DeviceType device) {
  torch::jit::Stack result;
  for (const auto& value : values) result.push_back(exchanged(value, change, device));
  return result;
}

void for_each_tensor(const IValue& value, const std::function<void(const at::Tensor&)>& see) {
  exchanged(
      value, [&](const at::Tensor& t) { return see(t), t; }, c10::kPrivateUse1);
}

// The device of the first tensor, else the device argument's.
c10::Device device_of(const torch::jit::Stack& arguments) {
  c10::DeviceIndex index = current_device();
  for (auto it = arguments.rbegin(); it != arguments.rend(); ++it) {
    if (it->isDevice() && it->toDevice().has_index()) index = it->toDevice().index();
    for_each_tensor(*it, [&](const at::Tensor& t) {
      if (ours(t)) index = t.device().index();
    });
  }
  return device(index);
}

void grow(const at::Tensor& t, c10::IntArrayRef sizes);

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto first = stack->size() - schema.arguments().size();
  const torch::jit::Stack arguments(stack->begin() + first, stack->end());
  const c10::DeviceGuard guard(device_of(arguments));
  const at::NoGradGuard no_grad;

  auto metas = exchanged(arguments, meta, c10::kMeta);
  const auto meta_arguments = metas;
  op.callBoxed(&metas);

  // What it writes into, with the size that the meta kernel gave it.
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias == nullptr || !alias->isWrite() || !arguments[i].isTensor() ||
        !ours(arguments[i].toTensor()))
      continue;
    const auto sizes = meta_arguments[i].toTensor().sizes();
    if (arguments[i].toTensor().sizes() != sizes) grow(arguments[i].toTensor(), sizes);
  }
  torch::jit::Stack results;
  std::vector<std::pair<std::size_t, at::Tensor>> fresh;  // results to be filled in
  for (std::size_t r = 0; r < metas.size(); ++r) {
    const auto* alias = schema.returns()[r].alias_info();
    if (alias != nullptr) {
      TORCH_CHECK(alias->isWrite(), "test device: ", schema.name(),
                  " is a view; it needs a kernel of its own");
      for (std::size_t i = 0; i < arguments.size(); ++i) {
        const auto* theirs = schema.arguments()[i].alias_info();
        if (theirs != nullptr && *theirs == *alias) results.push_back(arguments[i]);
      }
      TORCH_CHECK(results.size() == r + 1, "test device: ", schema.name(),
                  " returns what it was not given");
      continue;
    }
    results.push_back(exchanged(
        metas[r],
        [&](const at::Tensor& m) {
          if (!m.defined()) return m;
          auto t = at::empty_strided(m.sizes(), m.strides(),
                                     m.options().device(device(current_device())));
          TORCH_CHECK(metas[r].isTensor(), "test device: ", schema.name(), " returns a list");
          fresh.emplace_back(r, seen(t));
          return t;
        },
        c10::kPrivateUse1));
  }
  enqueue(current_stream(current_device()),
          [op, fresh, in = exchanged(arguments, seen, c10::kCPU)]() mutable {
            const at::NoGradGuard no_grad;
            op.callBoxed(&in);
            for (auto& [index, t] : fresh) t.copy_(in[index].toTensor());
          });
  stack->resize(first);
  stack->insert(stack->end(), results.begin(), results.end());
}

at::Tensor empty(c10::SymIntArrayRef sizes, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> where, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(
      device(where && where->has_index() ? where->index() : current_device()));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(sizes), allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> where, std::optional<bool>) {
  const c10::DeviceGuard guard(
      device(where && where->has_index() ? where->index() : current_device()));
  return at::detail::empty_strided_generic(sizes, strides, allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// New memory where the old is too small; only outputs are resized, so nothing is kept.
void grow(const at::Tensor& t, c10::IntArrayRef sizes) {
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(sizes);
  const auto bytes = static_cast<std::size_t>(t.numel() * t.element_size());
  auto& storage = impl->unsafe_storage();
  if (storage.nbytes() >= bytes) return;
  const c10::DeviceGuard guard(t.device());
  storage.set_data_ptr_noswap(allocator()->allocate(bytes));
  storage.set_nbytes(bytes);
}

const at::Tensor& resize_(const at::Tensor& t, c10::SymIntArrayRef sizes,
                          std::optional<at::MemoryFormat>) {
  grow(t, C10_AS_INTARRAYREF_SLOW(sizes));
  return t;
}

at::Tensor as_strided(const at::Tensor& t, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides,
                      std::optional<c10::SymInt> offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(t.storage()), t.key_set(), t.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides),
      offset ? offset->guard_int(__FILE__, __LINE__) : t.storage_offset());
  return view;
}

at::Tensor view(const at::Tensor& t, c10::SymIntArrayRef sizes) {
  const auto m = meta(t).view_symint(sizes);
  return as_strided(t, m.sym_sizes(), m.sym_strides(), std::nullopt);
}

// One event: `later` goes on only after what `earlier` has now.
void order(const c10::Stream& earlier, const c10::Stream& later) {
  if (earlier != later) enqueue(later, [marker = mark(earlier)] { marker.wait(); });
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  const at::NoGradGuard no_grad;
  const auto where = ours(to) ? to.device() : from.device();
  const auto stream = current_stream(where.index());
  const auto other = ours(from) ? current_stream(from.device().index()) : stream;
  order(other, stream);
  // The host's tensor may change once this returns, so it is read now, or written before.
  enqueue(stream, [to = seen(to), from = ours(from) ? seen(from) : from.clone()] {
    const at::NoGradGuard kernels_have_none;
    at::Tensor(to).copy_(from);
  });
  order(stream, other);
  if (!ours(to)) synchronize(stream);
  return to;
}

at::Scalar local_scalar_dense(const at::Tensor& t) {
  synchronize(current_stream(t.device().index()));
  return at::_local_scalar_dense(seen(t));
}

// Fills `t` with random numbers that `draw` puts into a CPU tensor of its shape now: in launch
// order, as a GPU's generator hands out its offsets.
template <class Draw>
at::Tensor& fill(at::Tensor& t, const std::optional<at::Generator>& given, Draw draw) {
  const at::NoGradGuard no_grad;
  auto generator = given && given->defined() ? *given : default_generator(t.device().index());
  auto numbers = at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kCPU));
  {
    const std::lock_guard<std::mutex> guard(generator.mutex());
    draw(numbers, cpu_generator(generator));
  }
  enqueue(current_stream(t.device().index()),
          [to = seen(t), numbers] { at::Tensor(to).copy_(numbers); });
  return t;
}

at::Tensor& bernoulli_(at::Tensor& t, double p, std::optional<at::Generator> generator) {
  return fill(t, generator, [p](at::Tensor& n, const at::Generator& g) { n.bernoulli_(p, g); });
}
at::Tensor& uniform_(at::Tensor& t, double from, double to,
                     std::optional<at::Generator> generator) {
  return fill(t, generator,
              [=](at::Tensor& n, const at::Generator& g) { n.uniform_(from, to, g); });
}
at::Tensor& normal_(at::Tensor& t, double mean, double std,
                    std::optional<at::Generator> generator) {
  return fill(t, generator,
              [=](at::Tensor& n, const at::Generator& g) { n.normal_(mean, std, g); });
}

// As a GPU's: saves a mask of bools.
std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& t, double p,
                                                  std::optional<bool> train) {
  if (!train.value_or(true) || p == 0)
    return {t.clone(), at::ones_like(t, t.options().dtype(at::kBool))};
  auto mask = at::empty_like(t, t.options().dtype(at::kBool)).bernoulli_(1 - p);
  return {t * mask * (1 / (1 - p)), mask};
}
at::Tensor native_dropout_backward(const at::Tensor& grad, const at::Tensor& mask, double scale) {
  return grad * mask * scale;
}

void record_stream_kernel(at::Tensor& t, c10::Stream stream) {
  record_stream(t.storage().data_ptr(), stream);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_copy_from", &copy_from);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("bernoulli_.float", &bernoulli_);
  m.impl("uniform_", &uniform_);
  m.impl("normal_", &normal_);
  m.impl("native_dropout", &native_dropout);
  m.impl("native_dropout_backward", &native_dropout_backward);
  m.impl("record_stream", &record_stream_kernel);
}

}  // namespace
}  // namespace testdev
