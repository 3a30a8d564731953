// A choice as recoup's configuration.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "recoup/budget/choose.h"

namespace recoup::cli {

// The layers that recompute each module, by its name, and the MLPs that do so at level activation.
struct Chosen {
  std::map<std::string, std::set<std::int64_t>> layers;
  std::set<std::int64_t> mlp_activation;

  bool empty() const { return layers.empty(); }
  // Adds what a timeline's first microbatch decides.
  void add(const budget::Timeline& timeline, const budget::Decisions& decisions);
};

// The YAML that says so, each line of `comment` before it. It is read again by the policy's own
// parser; a Problem where that would decide otherwise for any of `layers`, whose MoE layers are
// named.
std::string to_yaml(const Chosen& chosen, const std::string& comment, std::int64_t layers,
                    const std::set<std::int64_t>& moe);

// Writes `text`, or a Problem that says why not.
void write_file(const std::string& path, const std::string& text);

}  // namespace recoup::cli
