// One expression, by LayerSet and by its naive twin.
#pragma once

#include <string>

#include "naive_layers.h"
#include "recoup/policy/layers.h"

namespace recoup {

// What the two disagree on for a model of `total` layers, or empty.
inline std::string disagreement(const std::string& expression, int total) {
  const auto set = LayerSet::parse(expression);
  const auto twin = naive::parse(expression, total);
  if (set.ok() != twin.has_value()) return set.ok() ? "accepted" : set.error().text;
  if (!set.ok()) return {};
  for (int n = 1; n <= total; ++n) {
    if (set.value().contains(n, total) != (twin->layers.count(n) > 0)) {
      return "layer " + std::to_string(n);
    }
  }
  std::size_t none = 0;
  for (const auto& term : twin->terms) none += term.layers.empty();
  if (set.value().terms_without_layer(total).size() != none) return "terms without a layer";
  // A set read again from its own words is the same set, and so is a listed one.
  const auto members = set.value().members(total);
  for (const auto& text : {set.value().text(), layer_expression(members)}) {
    if (text == "none") continue;
    const auto again = LayerSet::parse(text);
    if (!again.ok() || again.value().members(total) != members) return "read again: " + text;
  }
  return {};
}

}  // namespace recoup
