#include "recoup/policy/config.h"

#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "text.h"

namespace recoup {

namespace {

using text::one_of;

std::vector<std::string> module_names() {
  std::vector<std::string> names;
  for (const auto& module : kModules) names.push_back(module.name);
  return names;
}

// One reading of one file: collects the keys, then checks them against each other. The first
// problem ends it.
class Reader {
 public:
  explicit Reader(std::string file) : file_(std::move(file)) {}

  Result<Config> read(const std::string& yaml) {
    try {
      read_document(yaml);
      check_together();
      return config_;
    } catch (const Error& error) {  // thrown by this class only, and caught here
      return error;
    } catch (const YAML::ParserException& e) {
      return Error{place(e.mark) + ": not valid YAML: " + e.msg};
    } catch (const YAML::Exception& e) {
      return Error{place(e.mark) + ": " + e.msg};
    }
  }

 private:
  std::string place(const YAML::Mark& mark) const {
    return file_ + ":" + std::to_string(mark.line + 1) + ":" + std::to_string(mark.column + 1);
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    const auto at = config_.where.find(key);
    throw Error{(at == config_.where.end() ? file_ : at->second) + ": " + key + ": " + what};
  }

  // What the value is, in the words of an error.
  static std::string shown(const YAML::Node& value) {
    if (value.IsSequence()) return "a list";
    if (value.IsMap()) return "a mapping";
    if (value.IsNull()) return "null";
    return (value.Tag() == "!" ? "the text \"" : "\"") + value.Scalar() + "\"";
  }

  std::string word(const std::string& key, const YAML::Node& value,
                   const std::vector<std::string>& allowed) const {
    if (value.IsScalar()) {
      for (const auto& w : allowed) {
        if (value.Scalar() == w) return w;
      }
    }
    fail(key, "must be " + one_of(allowed) + ", not " + shown(value) +
                  (value.IsScalar() ? text::did_you_mean(value.Scalar(), allowed) : ""));
  }

  std::int64_t count(const std::string& key, const YAML::Node& value) const {
    const bool plain = value.IsScalar() && value.Tag() != "!";
    const auto n = plain ? text::to_integer(value.Scalar()) : std::nullopt;
    if (!n) fail(key, "must be an integer >= 1, not " + shown(value));
    if (*n < 1) fail(key, "must be >= 1, not " + value.Scalar());
    return *n;
  }

  bool flag(const std::string& key, const YAML::Node& value) const {
    if (value.IsScalar() && value.Tag() != "!") {
      if (value.Scalar() == "true") return true;
      if (value.Scalar() == "false") return false;
    }
    fail(key, "must be true or false, not " + shown(value));
  }

  LayerSet expression(const std::string& key, const YAML::Node& value) const {
    if (!value.IsScalar()) fail(key, "must be a layer expression, not " + shown(value));
    auto set = LayerSet::parse(value.Scalar());
    if (!set.ok()) fail(key, set.error().text);
    return set.value();
  }

  void modules(const std::string& key, const YAML::Node& value) {
    const std::string allowed =
        "a list of " + one_of(module_names()) + ", such as [core_attn, mlp]";
    if (!value.IsSequence()) fail(key, "must be " + allowed + ", not " + shown(value));
    for (const auto& item : value) {
      std::size_t m = 0;
      while (m < kModuleCount && !(item.IsScalar() && item.Scalar() == kModules[m].name)) ++m;
      if (m == kModuleCount) {
        config_.where[key] = place(item.Mark());
        fail(key, shown(item) + " is no module to recompute; allowed: " + one_of(module_names()) +
                      (item.IsScalar() ? text::did_you_mean(item.Scalar(), module_names()) : ""));
      }
      if (config_.modules[m]) {
        config_.where[key] = place(item.Mark());
        fail(key, "\"" + item.Scalar() + "\" stands in the list twice");
      }
      config_.modules[m] = true;
    }
  }

  using Setter = std::function<void(const std::string& key, const YAML::Node& value)>;

  std::map<std::string, Setter> setters() {
    std::map<std::string, Setter> keys;
    keys["recompute_granularity"] = [this](auto& key, auto& value) {
      config_.granularity = word(key, value, {"selective", "full"}) == "full"
                                ? Granularity::kFull
                                : Granularity::kSelective;
    };
    keys["recompute_method"] = [this](auto& key, auto& value) {
      config_.method =
          word(key, value, {"uniform", "block"}) == "block" ? Method::kBlock : Method::kUniform;
    };
    keys["recompute_num_layers"] = [this](auto& key, auto& value) {
      config_.num_layers = count(key, value);
    };
    keys["recompute_modules"] = [this](auto& key, auto& value) { modules(key, value); };
    keys["mlp_recompute_level"] = [this](auto& key, auto& value) {
      config_.mlp_activation =
          word(key, value, {"full", "activation"}) == "full" ? LayerSet::first(0) : LayerSet::all();
    };
    keys["mlp_activation_layers"] = [this](auto& key, auto& value) {
      config_.mlp_activation = expression(key, value);
    };
    keys["recompute_layer_scope"] = [this](auto& key, auto& value) {
      config_.per_stage = word(key, value, {"global", "stage"}) == "stage";
    };
    keys["distribute_saved_activations"] = [this](auto& key, auto& value) {
      config_.distribute_saved_activations = flag(key, value);
    };
    for (std::size_t m = 0; m < kModuleCount; ++m) {
      const std::string stem = std::string("recompute_") + kModules[m].name;
      keys[stem + "_num_layers"] = [this, m](auto& key, auto& value) {
        config_.layers[m] = LayerSet::first(count(key, value));
      };
      keys[stem + "_layers"] = [this, m](auto& key, auto& value) {
        config_.layers[m] = expression(key, value);
      };
    }
    return keys;
  }

  void read_document(const std::string& yaml) {
    const auto documents = YAML::LoadAll(yaml);
    if (documents.empty() || documents[0].IsNull()) return;  // an empty file sets nothing
    if (documents.size() > 1) {
      throw Error{place(documents[1].Mark()) + ": a second YAML document; allowed is one"};
    }
    const auto& root = documents[0];
    if (!root.IsMap()) {
      throw Error{place(root.Mark()) +
                  ": must be a mapping such as \"recompute_granularity: "
                  "selective\", not " +
                  shown(root)};
    }
    const auto keys = setters();
    std::vector<std::string> names;
    for (const auto& [name, setter] : keys) names.push_back(name);
    std::map<std::string, std::string> seen;
    for (const auto& entry : root) {
      const auto at = place(entry.first.Mark());
      if (!entry.first.IsScalar()) throw Error{at + ": a key must be a word"};
      const auto& key = entry.first.Scalar();
      const auto setter = keys.find(key);
      if (setter == keys.end()) {
        const auto hint = text::did_you_mean(key, names);
        throw Error{at + ": " + key + ": unknown key" +
                    (hint.empty() ? "; allowed: " + one_of(names) : hint)};
      }
      const auto [first, fresh] = seen.emplace(key, at);
      if (!fresh) throw Error{at + ": " + key + ": set twice, first at " + first->second};
      if (entry.second.IsNull()) continue;  // unset, as None is in Megatron
      config_.where[key] = at;
      setter->second(key, entry.second);
    }
  }

  bool set(const std::string& key) const { return config_.where.count(key) > 0; }

  void check_together() {
    const bool selective = config_.granularity == Granularity::kSelective;
    const bool full = config_.granularity == Granularity::kFull;
    if (set("recompute_modules") && !selective) {
      fail("recompute_modules", "requires recompute_granularity: selective");
    }
    if (selective && !set("recompute_modules")) {
      config_.modules[static_cast<std::size_t>(Module::kCoreAttn)] = true;
    }
    for (std::size_t m = 0; m < kModuleCount; ++m) {
      const std::string stem = std::string("recompute_") + kModules[m].name;
      for (const char* suffix : {"_num_layers", "_layers"}) {
        if (set(stem + suffix)) require_module(stem + suffix, kModules[m].name, config_.modules[m]);
      }
      if (set(stem + "_num_layers") && set(stem + "_layers")) {
        fail(stem + "_layers", "set beside " + stem + "_num_layers; allowed is one of the two");
      }
    }
    for (const char* key : {"mlp_recompute_level", "mlp_activation_layers"}) {
      if (set(key)) require_module(key, "mlp", config_.has(Module::kMlp));
    }
    if (set("mlp_recompute_level") && set("mlp_activation_layers")) {
      fail("mlp_activation_layers", "set beside mlp_recompute_level; allowed is one of the two");
    }
    for (const char* key : {"recompute_method", "recompute_num_layers"}) {
      if (set(key) && !full) fail(key, "requires recompute_granularity: full");
      if (full && !set(key)) {
        fail("recompute_granularity",
             std::string("full requires ") + key +
                 (key == std::string("recompute_method") ? " (uniform or block)"
                                                         : " (an integer >= 1)"));
      }
    }
  }

  void require_module(const std::string& key, const std::string& module, bool listed) const {
    if (config_.granularity != Granularity::kSelective) {
      fail(key, "requires recompute_granularity: selective");
    }
    if (!listed) fail(key, "requires \"" + module + "\" in recompute_modules");
  }

  std::string file_;
  Config config_;
};

}  // namespace

Result<Config> parse_config(const std::string& yaml, const std::string& name) {
  return Reader(name).read(yaml);
}

Result<Config> load_config(const std::string& path) {
  std::error_code ignored;
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path, ignored)) {
    return Error{path + ": cannot be read; name an existing YAML file"};
  }
  std::stringstream content;
  content << file.rdbuf();
  return parse_config(content.str(), path);
}

}  // namespace recoup
