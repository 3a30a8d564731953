// One value of the file, read as its key's row says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "document.h"
#include "recoup/policy/config.h"

namespace recoup {

// Reads one key's value into the configuration. Whatever is not allowed throws an Error that names
// place and key and says what is; only parse_config meets it.
class Value {
 public:
  Value(const std::string& key, const Node& node, Config& config)
      : config(config), key_(key), node_(node) {}

  // Which of `allowed` it is.
  std::size_t word(const std::vector<std::string>& allowed) const;
  // An integer >= 1.
  std::int64_t count() const;
  // true or false.
  bool flag() const;
  // A layer expression, or a list of them and of numbers.
  LayerSet layers() const;
  // A list of modules, each once.
  std::array<bool, kModuleCount> modules() const;
  MemoryBudget memory_budget() const;

  Config& config;

 private:
  [[noreturn]] void fail(const std::string& what) const { fail_at(config.where.at(key_), what); }
  [[noreturn]] void fail_at(const std::string& place, const std::string& what) const {
    throw Error{place + ": " + key_ + ": " + what};
  }

  const std::string& key_;
  const Node& node_;
};

}  // namespace recoup
