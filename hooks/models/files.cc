// recoup's own model file, and which kind a file is.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "file.h"
#include "recoup/models/model.h"
#include "values.h"

namespace recoup::models {
namespace {

struct SizeKey {
  const char* key;
  std::int64_t Model::*field;
  std::int64_t least;
};
constexpr SizeKey kSizes[] = {
    {"hidden", &Model::hidden, 1},         {"heads", &Model::heads, 1},
    {"kv_heads", &Model::kv_heads, 1},     {"head_size", &Model::head_size, 1},
    {"vocabulary", &Model::vocabulary, 0}, {"positions", &Model::positions, 0},
};

// The file's keys and values in its order. Values are scalars.
using Keys = std::vector<std::pair<std::string, std::string>>;

Result<Keys> keys_of(const std::string& text, const std::string& name) {
  Keys keys;
  std::set<std::string> seen;
  try {
    const auto root = YAML::Load(text);
    if (!root.IsMap()) return Error{name + ": must be a mapping of keys to values"};
    for (const auto& pair : root) {
      const auto where = name + ":" + std::to_string(pair.first.Mark().line + 1) + ": ";
      if (!pair.first.IsScalar()) return Error{where + "a key must be a word"};
      const auto key = pair.first.Scalar();
      if (!seen.insert(key).second) return Error{where + key.substr(0, 60) + ": is there twice"};
      if (!pair.second.IsScalar()) return Error{where + key.substr(0, 60) + ": must be one value"};
      keys.push_back({key, pair.second.Scalar()});
    }
  } catch (const YAML::Exception& e) {
    return Error{name + ":" + std::to_string(e.mark.line + 1) + ": not valid YAML: " + e.msg};
  }
  return keys;
}

}  // namespace

Result<Described> read_recoup(const std::string& text, const std::string& name) {
  auto keys = keys_of(text, name);
  if (!keys.ok()) return Error{keys.error().text};
  Described d;
  auto& m = d.model;
  m.implementation = Implementation::kMegatron;
  m.name = "model file";
  m.norm = Norm::kLayer;
  m.activation = Activation::kGelu;
  m.dropout = 0.1;
  m.attention = Attention::kEager;
  std::int64_t layers = 0, ffn = 0;
  const auto wrong = [&](const std::string& key, const std::string& what) {
    return Error{name + ": " + key + ": " + what};
  };
  for (const auto& [key, value] : keys.value()) {
    const auto* size = std::find_if(std::begin(kSizes), std::end(kSizes),
                                    [&, k = key](const SizeKey& s) { return k == s.key; });
    if (size != std::end(kSizes)) {
      const auto n = to_integer(value, size->least, kMostSize);
      if (!n.ok()) return wrong(key, n.error().text);
      m.*(size->field) = n.value();
    } else if (key == "layers") {
      const auto n = to_integer(value, 1, kMostLayers);
      if (!n.ok()) return wrong(key, n.error().text);
      layers = n.value();
    } else if (key == "ffn") {
      const auto n = to_integer(value, 0, kMostSize);
      if (!n.ok()) return wrong(key, n.error().text);
      ffn = n.value();
    } else if (key == "dropout") {
      const auto n = to_number(value, 0, 0.999999);
      if (!n.ok()) return wrong(key, n.error().text);
      m.dropout = n.value();
    } else if (key == "element_size") {
      const auto n = to_integer(value, 2, 4);
      if (!n.ok() || n.value() == 3)
        return wrong(key, "must be 2 or 4, not \"" + value.substr(0, 40) + "\"");
      m.act_bytes = m.gemm_bytes = static_cast<double>(n.value());
      m.weight_bytes = n.value();
    } else if (key == "implementation") {
      if (value != "megatron" && value != "libtorch") {
        return wrong(key, "must be megatron or libtorch, not \"" + value.substr(0, 40) + "\"");
      }
      if (value == "libtorch") m.implementation = Implementation::kLibtorch;
    } else if (key == "gated") {
      const auto b = to_bool(value);
      if (!b.ok()) return wrong(key, b.error().text);
      m.activation = b.value() ? Activation::kGated : Activation::kGelu;
    } else if (key == "norm") {
      if (value != "layer" && value != "rms") {
        return wrong(key, "must be layer or rms, not \"" + value.substr(0, 40) + "\"");
      }
      m.norm = value == "rms" ? Norm::kRms : Norm::kLayer;
    } else {
      const auto set = set_option(d, key, value);
      if (!set.ok()) {
        auto text_of = set.error().text;
        const std::string unknown = ": unknown key; allowed: ";
        if (const auto at = text_of.find(unknown); at != std::string::npos) {
          text_of.insert(
              at + unknown.size(),
              "layers, hidden, heads, kv_heads, head_size, ffn, vocabulary, positions, dropout, "
              "element_size, implementation, gated, norm, ");
        }
        return Error{name + ": " + text_of};
      }
    }
  }
  for (const auto& [value, key] :
       {std::pair{layers, "layers"}, {m.hidden, "hidden"}, {m.heads, "heads"}}) {
    if (value == 0) return Error{name + ": " + key + ": is not said"};
  }
  if (m.kv_heads == 0) m.kv_heads = m.heads;
  if (m.head_size == 0) {
    if (m.hidden % m.heads != 0) {
      return wrong("heads", std::to_string(m.heads) + " does not divide hidden, " +
                                std::to_string(m.hidden));
    }
    m.head_size = m.hidden / m.heads;
  }
  if (m.heads % m.kv_heads != 0) {
    return wrong("kv_heads",
                 std::to_string(m.kv_heads) + " does not divide heads, " + std::to_string(m.heads));
  }
  if (m.implementation == Implementation::kLibtorch) {
    // examples/gpt: biases everywhere, positions learned, a head of its own.
    m.attention_bias = m.mlp_bias = true;
    if (m.positions == 0) m.positions = d.parallel.sequence;
    if (m.activation == Activation::kGated || m.norm == Norm::kRms || m.kv_heads != m.heads) {
      return wrong("implementation",
                   "libtorch is examples/gpt, which has no gated MLP, RMSNorm or grouped heads");
    }
  }
  m.attention_dropout = m.dropout;
  m.sequence = d.parallel.sequence;
  m.layers.assign(static_cast<std::size_t>(layers), Layer{false, ffn == 0 ? 4 * m.hidden : ffn});
  return d;
}

Result<Described> read_model(const std::string& path) {
  const auto content = read_file(path, std::size_t{8} << 20, "model file");
  if (!content.ok()) return Error{content.error().text};
  const auto& text = content.value();
  const auto first = text.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
  if (first == std::string::npos) return Error{path + ": is empty"};
  const bool json = path.size() > 5 && path.compare(path.size() - 5, 5, ".json") == 0;
  if (json || text[first] == '{' || text[first] == '[') {
    return read_huggingface(text.substr(first), path);
  }
  if (text.find("--num-layers") != std::string::npos ||
      text.find("--num_layers") != std::string::npos) {
    return read_megatron(text, path);
  }
  // Megatron's arguments as YAML are keys with its names.
  if (text.find("num_layers:") != std::string::npos ||
      text.find("num-layers:") != std::string::npos) {
    auto keys = keys_of(text, path);
    if (!keys.ok()) return Error{keys.error().text};
    std::string arguments;
    for (const auto& [key, value] : keys.value()) {
      if (value != "false" && value != "False" && value != "null" && value != "~") {
        arguments += " --" + key + (value == "true" || value == "True" ? "" : " " + value);
      }
    }
    return read_megatron(arguments, path);
  }
  return read_recoup(text, path);
}

}  // namespace recoup::models
