// What the commands of the program `recoup` share.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <stdexcept>
#include <string>

#include "recoup/result.h"

namespace recoup::cli {

// What stops a command: one sentence for the user, printed as "recoup: ..." with exit status 1.
// Wrong usage of the command line is CLI11's and ends with exit status 2.
struct Problem : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The value, or its error as a Problem.
template <class T>
T value_of(Result<T> result) {
  if (!result.ok()) throw Problem(result.error().text);
  return std::move(result.value());
}

// Each adds its command to the program; the command runs as CLI11's callback.
void add_check(CLI::App& app);
void add_estimate(CLI::App& app);
void add_plan(CLI::App& app);
void add_explain(CLI::App& app);
void add_report(CLI::App& app);

}  // namespace recoup::cli
