// Columns of text, for terminals and logs.
#pragma once

#include <string>
#include <vector>

namespace recoup::cli {

class Table {
 public:
  explicit Table(std::vector<std::string> heads) { rows_.push_back(std::move(heads)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  // Each row on a line; the first column and those named in `left` to the left, others to the
  // right; columns parted by two blanks.
  std::string text(const std::vector<std::size_t>& left = {}) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace recoup::cli
