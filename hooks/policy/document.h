// One YAML document as a tree of nodes that know their place.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "recoup/result.h"

namespace recoup {

struct Node {
  // kEmpty: nothing is written where a value may stand; kNull: null or ~.
  enum class Kind { kEmpty, kNull, kPlain, kQuoted, kList, kMapping };
  Kind kind;
  std::string place;   // "file:line:column"
  std::string text{};  // of a scalar
  // A list's items; of a mapping, keys and values in turn. An alias is the node of its anchor, so
  // that a node may contain itself.
  std::vector<const Node*> items{};

  bool is_scalar() const { return kind == Kind::kPlain || kind == Kind::kQuoted; }
  bool is_null() const { return kind == Kind::kEmpty || kind == Kind::kNull; }
};

class Document {
 public:
  Document(Document&&) = default;  // a copy's items would point into the original

  // Reads the one document that `yaml` (UTF-8 without a byte order mark) may hold. An error for
  // more than one, for anything after it, for a value with a tag (which YAML would drop without a
  // word: `! 7` is 7 to it), for control characters and for nesting deeper than any option has.
  // `file` stands in errors.
  static Result<Document> read(std::string_view yaml, const std::string& file);

  // Null where the text holds nothing but comments.
  const Node* root() const { return root_; }

 private:
  friend class Builder;
  Document() = default;
  std::deque<Node> nodes_;  // never move in memory, as items point to them
  const Node* root_ = nullptr;
};

}  // namespace recoup
