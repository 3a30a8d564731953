// Which of a model's layers a rule means. Layers have 1-indexed global numbers, as in Megatron-LM:
// the first layer of the model is 1 on every pipeline stage.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "recoup/result.h"

namespace recoup {

class LayerSet {
 public:
  static LayerSet all();
  // Layers 1..n; none for n = 0, all there are for n larger than the model.
  static LayerSet first(std::int64_t n);

  // Parses a layer expression: terms separated by commas, applied from left to right.
  //   7        layer 7                      7-12     layers 7 to 12
  //   7-       layer 7 to the last          1-24:2   every second one of 1..24: 1, 3, 5, ...
  //   all      every layer                  2/3      the first 2 of every 3: 1, 2, 4, 5, 7, ...
  //   !TERM    without the layers of TERM; a leading ! starts from all
  //   last     the last layer (last-2: the one two before it), wherever a number may stand
  //   -1       all but the last layer (-K: all but the last K), as its own term
  // Returns an error that quotes the bad term and lists the forms; also for more than kMostTerms.
  static constexpr std::size_t kMostTerms = 4096;
  static Result<LayerSet> parse(const std::string& expression);

  // Whether the set has `layer` (>= 1) of a model with `total` layers. `total` is 0 where it is not
  // known, which only sets that do not need it accept (see needs_total).
  bool contains(std::int64_t layer, std::int64_t total) const;

  // Whether the set has no layer of any model.
  bool empty() const { return terms_.empty(); }

  // Whether the set speaks of the model's last layers.
  bool needs_total() const;

  // The largest layer number named outright, 0 for none: to warn where the model is shorter.
  std::int64_t largest_named() const;

  // The terms, as they were written, that name no layer of a model with `total` (>= 1) layers.
  std::vector<std::string> terms_without_layer(std::int64_t total) const;

  // The layers of 1..total in the set, in order. Takes time for each of them.
  std::vector<std::int64_t> members(std::int64_t total) const;

  // The set as an expression: as it was written, or `all`, `1-12`; `none` where it is empty.
  std::string text() const;

 private:
  // A layer number counted from the first (1..) or, where from_end, backwards from the last (0..).
  struct Point {
    std::int64_t offset;
    bool from_end;
    std::int64_t in(std::int64_t total) const { return from_end ? total - offset : offset; }
  };
  struct Term {
    bool removes;
    Point low, high;
    std::int64_t period;  // of every `period` layers from `low` on ...
    std::int64_t run;     // ... the first `run`
    std::string text;     // as it was written

    bool has(std::int64_t layer, std::int64_t total) const;
    bool names_any(std::int64_t total) const;
  };
  static Result<Term> parse_term(const std::string& term);
  std::vector<Term> terms_;
};

// Layers, in ascending order, as an expression: "1-4,7" or "1-23:2"; "none" for none.
std::string layer_expression(const std::vector<std::int64_t>& layers);

}  // namespace recoup
