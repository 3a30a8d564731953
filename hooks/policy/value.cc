#include "value.h"

#include "text.h"

namespace recoup {
namespace {

using text::one_of;

// What the value is, in the words of an error.
std::string shown(const Node& node) {
  switch (node.kind) {
    case Node::Kind::kList:
      return node.items.empty() ? "an empty list" : "a list";
    case Node::Kind::kMapping:
      return "a mapping";
    case Node::Kind::kQuoted:
      return "the text " + text::quoted(node.text);
    case Node::Kind::kPlain:
      return text::quoted(node.text);
    default:
      return "null";
  }
}

}  // namespace

std::size_t Value::word(const std::vector<std::string>& allowed) const {
  for (std::size_t i = 0; node_.is_scalar() && i < allowed.size(); ++i) {
    if (node_.text == allowed[i]) return i;
  }
  fail("must be " + one_of(allowed) + ", not " + shown(node_) +
       (node_.is_scalar() ? text::did_you_mean(node_.text, allowed) : ""));
}

std::int64_t Value::count() const {
  const bool plain = node_.kind == Node::Kind::kPlain;
  const auto n = plain ? text::to_integer(node_.text) : std::nullopt;
  if (!n) fail("must be an integer >= 1, not " + shown(node_));
  if (*n < 1) fail("must be >= 1, not " + node_.text);
  return *n;
}

bool Value::flag() const {
  if (node_.kind == Node::Kind::kPlain) {
    if (node_.text == "true") return true;
    if (node_.text == "false") return false;
  }
  fail("must be true or false, not " + shown(node_));
}

LayerSet Value::layers() const {
  std::string expression;
  if (node_.is_scalar()) {
    expression = node_.text;
  } else if (node_.kind == Node::Kind::kList && !node_.items.empty()) {
    for (std::size_t i = 0; i < node_.items.size(); ++i) {
      const auto& item = *node_.items[i];
      if (!item.is_scalar()) {
        fail_at(item.place, "must be layer numbers and expressions, not " + shown(item));
      }
      expression += (i == 0 ? "" : ",") + item.text;
    }
  } else {
    fail("must be a layer expression or a list of layers, not " + shown(node_));
  }
  auto set = LayerSet::parse(expression);
  if (!set.ok()) fail(set.error().text);
  return set.value();
}

std::array<bool, kModuleCount> Value::modules() const {
  std::vector<std::string> names;
  for (const auto& module : kModules) names.push_back(module.name);
  if (node_.kind != Node::Kind::kList) {
    fail("must be a list of " + one_of(names) + ", such as [core_attn, mlp], not " + shown(node_));
  }
  std::array<bool, kModuleCount> listed{};
  for (const auto* item : node_.items) {
    std::size_t m = 0;
    while (m < kModuleCount && !(item->is_scalar() && item->text == names[m])) ++m;
    if (m == kModuleCount) {
      fail_at(item->place, shown(*item) + " is no module to recompute; allowed: " + one_of(names) +
                               (item->is_scalar() ? text::did_you_mean(item->text, names) : ""));
    }
    if (listed[m]) fail_at(item->place, "\"" + names[m] + "\" stands in the list twice");
    listed[m] = true;
  }
  return listed;
}

MemoryBudget Value::memory_budget() const {
  if (node_.kind != Node::Kind::kPlain && node_.kind != Node::Kind::kQuoted) {
    fail("must be bytes such as 74GiB, a share such as 90%, or auto, not " + shown(node_));
  }
  const auto budget = MemoryBudget::parse(node_.text);
  if (!budget.ok()) fail(budget.error().text);
  return budget.value();
}

}  // namespace recoup
