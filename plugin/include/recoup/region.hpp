// Forwards as a C++ host writes them, turned into what the contract's regions take: a function from
// a list of tensors to a list of tensors that owns all it needs. Used through recoup/host.hpp;
// knows no tensor library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace recoup::detail {

template <class T, class = void>
struct IsTuple : std::false_type {};
template <class T>
struct IsTuple<T, std::void_t<decltype(std::tuple_size<T>::value)>> : std::true_type {};

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};

// The tensor type of a value: itself, or that of a std::vector's, std::pair's or std::tuple's
// elements.
template <class T, class = void>
struct TensorOf {
  using type = T;
};
template <class T>
struct TensorOf<std::vector<T>> {
  using type = T;
};
template <class T>
struct TensorOf<T, std::enable_if_t<IsTuple<T>::value>> {
  using type = std::decay_t<std::tuple_element_t<0, T>>;
};

// A value as a list of tensors.
template <class Tensor, class T>
std::vector<Tensor> pack(T value) {
  if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
    return value;
  } else {
    std::vector<Tensor> tensors;
    if constexpr (IsTuple<T>::value) {
      tensors.reserve(std::tuple_size<T>::value);
      std::apply([&](auto&... each) { (tensors.push_back(std::move(each)), ...); }, value);
    } else {
      static_assert(std::is_convertible_v<T, Tensor>,
                    "a part gives a tensor, or a std::vector, std::pair or std::tuple of tensors");
      tensors.push_back(std::move(value));
    }
    return tensors;
  }
}

template <class T, class Tensor, std::size_t... I>
T from_list(std::vector<Tensor>& tensors, std::index_sequence<I...>) {
  return T{std::move(tensors[I])...};
}

// The value again.
template <class T, class Tensor>
T unpack(std::vector<Tensor> tensors) {
  if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
    return tensors;
  } else if constexpr (IsTuple<T>::value) {
    if (tensors.size() != std::tuple_size<T>::value) {
      throw std::logic_error("recoup: a forward gave another number of tensors when it was run");
    }
    return from_list<T>(tensors, std::make_index_sequence<std::tuple_size<T>::value>());
  } else {
    return std::move(tensors.at(0));
  }
}

// f(value), or f(elements...) where the value is a pair or tuple and f takes them apart.
template <class F, class In>
auto call(F& f, const In& value) {
  if constexpr (std::is_invocable_v<F&, const In&>) {
    return f(value);
  } else {
    static_assert(IsTuple<In>::value, "the function does not take what it is given");
    return std::apply(f, value);
  }
}

// A module's forward(), or its call operator where it has none.
template <class P, class... Args>
auto forward_of(int, P& module, const Args&... args) -> decltype(module->forward(args...)) {
  return module->forward(args...);
}
template <class P, class... Args>
auto forward_of(long, P& module, const Args&... args) -> decltype((*module)(args...)) {
  return (*module)(args...);
}

template <class T>
struct Held {  // a shared pointer to a module
  std::shared_ptr<T> module;
  template <class... Args>
  auto operator()(const Args&... args) const -> decltype(forward_of(0, module, args...)) {
    return forward_of(0, module, args...);
  }
};

template <class F>
struct Shared {  // a function that cannot be copied
  std::shared_ptr<F> function;
  template <class... Args>
  auto operator()(const Args&... args) const -> decltype((*function)(args...)) {
    return (*function)(args...);
  }
};

template <class T, class = void>
struct IsHolder : std::false_type {};
template <class T>
struct IsHolder<T, std::void_t<decltype(std::declval<const T&>().ptr().use_count())>>
    : std::true_type {};

template <class T>
Held<T> owned(std::shared_ptr<T> module) {
  return {std::move(module)};
}

// A function that owns all it needs and can be copied: a callable as it is, a shared pointer to a
// module, or a holder of one (what TORCH_MODULE makes), const or not.
template <class F>
auto owned(F function) {
  if constexpr (IsHolder<F>::value) {
    return owned(function.ptr());
  } else if constexpr (std::is_copy_constructible_v<F>) {
    return function;
  } else {
    return Shared<F>{std::make_shared<F>(std::move(function))};
  }
}

template <class T, class = void>
struct HasBytes : std::false_type {};
template <class T>
struct HasBytes<T, std::void_t<decltype(std::declval<const T&>().nbytes()),
                               decltype(std::declval<const T&>().defined())>> : std::true_type {};

// Of all tensors of a value; 0 where its type does not say.
template <class T>
std::int64_t bytes_of(const T& value) {
  if constexpr (HasBytes<T>::value) {
    return value.defined() ? static_cast<std::int64_t>(value.nbytes()) : 0;
  } else if constexpr (IsTuple<T>::value) {
    return std::apply([](const auto&... each) { return (bytes_of(each) + ... + 0); }, value);
  } else if constexpr (IsVector<T>::value) {
    std::int64_t sum = 0;
    for (const auto& each : value) sum += bytes_of(each);
    return sum;
  } else {
    return 0;
  }
}

// What recoup_region_v1.fc1_bytes points to.
struct Fc1Bytes {
  std::int64_t bytes = 0, held = 0;
};

// `fc1`, which counts its output's bytes.
template <class F>
auto counted(F fc1, std::shared_ptr<Fc1Bytes> bytes) {
  return [fc1 = std::move(fc1), bytes = std::move(bytes)](const auto& input) mutable {
    auto h = call(fc1, input);
    bytes->bytes = bytes_of(h);
    return h;
  };
}

template <class Tensors>
using Function = std::function<Tensors(const Tensors&)>;

// `run` (owned()) as a function of lists.
template <class In, class Out, class F>
auto listed(F run) {
  using Tensor = typename TensorOf<In>::type;
  using Tensors = std::vector<Tensor>;
  return Function<Tensors>([run = std::move(run)](const Tensors& in) mutable -> Tensors {
    if constexpr (std::is_same_v<In, Tensors>) {
      return pack<Tensor, Out>(call(run, in));
    } else {
      return pack<Tensor, Out>(call(run, unpack<In>(in)));
    }
  });
}

// Two functions (owned()) in turn.
template <class F, class G>
auto then(F first, G second) {
  return [first = std::move(first), second = std::move(second)](const auto& in) mutable {
    return call(second, call(first, in));
  };
}

// A region's functions behind the C interface.
template <class Tensors>
struct Region {
  Function<Tensors> forward, keep, restore, rest;

  template <Function<Tensors> Region::*function>
  static std::int32_t call(void* user, const void* in, void* out, void* exception) noexcept {
    try {
      *static_cast<Tensors*>(out) =
          (static_cast<Region*>(user)->*function)(*static_cast<const Tensors*>(in));
      return 0;
    } catch (...) {
      *static_cast<std::exception_ptr*>(exception) = std::current_exception();
      return 1;
    }
  }
  static void release(void* user) noexcept { delete static_cast<Region*>(user); }
};

}  // namespace recoup::detail
