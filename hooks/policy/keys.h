// The keys of the file, a row each: what config.cc reads, checks and documents them by.
#pragma once

#include <vector>

#include "value.h"

namespace recoup {

struct KeyRow : ConfigKey {
  // Reads the key's value; `module` is ConfigKey::module.
  void (*read)(const Value& value, std::size_t module);
};

const std::vector<KeyRow>& key_rows();

}  // namespace recoup
