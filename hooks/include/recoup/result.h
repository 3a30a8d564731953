// A value or one error text. What fails in recoup's policy is returned, never thrown, so that the
// same code serves behind a C ABI.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace recoup {

// One complete sentence for a person: where (file:line:column or the variable's name), which key,
// what is wrong and what is allowed.
struct Error {
  std::string text;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}
  Result(Error error) : state_(std::move(error)) {}

  bool ok() const { return std::holds_alternative<T>(state_); }
  // Precondition: ok().
  T& value() { return std::get<T>(state_); }
  const T& value() const { return std::get<T>(state_); }
  // Precondition: !ok().
  const Error& error() const { return std::get<Error>(state_); }

 private:
  std::variant<T, Error> state_;
};

}  // namespace recoup
