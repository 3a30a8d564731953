#include "recoup/policy/config.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <new>

#include "document.h"
#include "file.h"
#include "keys.h"
#include "text.h"

namespace recoup {
namespace {

[[noreturn]] void fail(const std::string& place, const std::string& key, const std::string& what) {
  throw Error{place + ": " + key + ": " + what};
}

[[noreturn]] void unknown_key(const Node& key) {
  std::vector<std::string> names;
  for (const auto& row : key_rows()) names.push_back(row.name);
  const auto hint = text::did_you_mean(key.text, names);
  fail(key.place, text::printable(key.text),
       "unknown key" + (hint.empty() ? "; allowed: " + text::one_of(names) : hint));
}

// Reads each key's value by its row.
Config read_keys(const Node& root) {
  if (root.kind != Node::Kind::kMapping) {
    throw Error{root.place +
                ": must be a mapping such as \"recompute_granularity: selective\", not " +
                (root.is_scalar() ? text::quoted(root.text) : "a list")};
  }
  const auto& rows = key_rows();
  Config config;
  std::map<std::string, std::string> seen;
  for (std::size_t i = 0; i + 1 < root.items.size(); i += 2) {
    const Node &key = *root.items[i], &value = *root.items[i + 1];
    if (!key.is_scalar()) throw Error{key.place + ": a key must be a word"};
    const auto row =
        std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return r.name == key.text; });
    if (row == rows.end()) unknown_key(key);
    const auto [first, fresh] = seen.emplace(key.text, key.place);
    if (!fresh) fail(key.place, key.text, "set twice, first at " + first->second);
    if (value.is_null()) {  // unset, as None is in Megatron-LM
      if (value.kind == Node::Kind::kEmpty) {
        config.notices.push_back(key.place + ": " + key.text +
                                 ": has no value, which leaves it unset: " + row->unset);
      }
      continue;
    }
    config.where[key.text] = key.place;
    row->read(Value(key.text, value, config), row->module);
  }
  return config;
}

// What `key` lacks to have an effect, or empty. What the constant mode can add is asked later.
std::string missing(const ConfigKey& key, const Config& config) {
  const bool selective = config.granularity == Granularity::kSelective;
  switch (key.needs) {
    case ConfigKey::Needs::kNothing:
      return {};
    case ConfigKey::Needs::kGranularity:
      return config.granularity == Granularity::kNone ? key.requirement() : "";
    case ConfigKey::Needs::kFull:
      return config.granularity == Granularity::kFull ? "" : key.requirement();
    case ConfigKey::Needs::kModule:
      if (selective) return config.modules[key.module] ? "" : key.requirement();
      [[fallthrough]];
    case ConfigKey::Needs::kSelective:
    case ConfigKey::Needs::kLayerNumbers:
      return selective ? "" : "recompute_granularity: selective";
  }
  return {};
}

// The keys against each other.
void check_together(Config& config) {
  const auto set = [&](const std::string& key) { return config.where.count(key) > 0; };
  if (config.granularity == Granularity::kSelective && !set("recompute_modules")) {
    config.modules[static_cast<std::size_t>(Module::kCoreAttn)] = true;
  }
  for (const auto& key : key_rows()) {
    if (set(key.name)) {
      if (const auto what = missing(key, config); !what.empty()) {
        fail(config.where[key.name], key.name, "requires " + what);
      }
      for (const auto& other : key.excludes) {
        if (set(other)) {
          fail(config.where[key.name], key.name,
               "set beside " + other + "; allowed is one of the two");
        }
      }
    } else if (key.needs == ConfigKey::Needs::kFull && config.granularity == Granularity::kFull) {
      fail(config.where["recompute_granularity"], "recompute_granularity",
           "full requires " + key.name + " (" + key.value + ")");
    }
  }
}

Result<Config> parse(const std::string& yaml, const std::string& file) {
  if (yaml.size() > kLargestConfig) {
    return Error{file + ": is larger than " + std::to_string(kLargestConfig) + " bytes"};
  }
  const auto document = Document::read(text::to_utf8(yaml), file);
  if (!document.ok()) return document.error();
  const auto* root = document.value().root();
  if (root == nullptr || root->is_null()) return Config();  // an empty file sets nothing
  try {
    auto config = read_keys(*root);
    check_together(config);
    return config;
  } catch (const Error& error) {  // ours
    return error;
  }
}

// `read()`, whatever is thrown in it.
template <class Read>
Result<Config> guarded(const Read& read) {
  try {
    try {
      return read();
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& e) {
      return Error{std::string("recoup: ") + e.what()};
    }
  } catch (...) {
    return Error{"out of memory"};  // short enough to need none
  }
}

}  // namespace

Result<Config> parse_config(const std::string& yaml, const std::string& name) {
  return guarded([&]() -> Result<Config> {
    return parse(yaml, text::printable(name, std::numeric_limits<std::size_t>::max()));
  });
}

Result<Config> load_config(const std::string& path) {
  return guarded([&]() -> Result<Config> {
    const auto yaml = read_file(path, kLargestConfig, "YAML file");
    return yaml.ok() ? parse_config(yaml.value(), path) : Result<Config>(yaml.error());
  });
}

}  // namespace recoup
