// A file that the plugin writes for people or programs (profile, trace). It is checked when the run
// starts, not when it is over; every write replaces the whole file at once, so that what stands
// there is complete whatever becomes of the process.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>

#include "recoup/result.h"

namespace recoup {

class Output {
 public:
  // `source` is the setting that named the path, for errors: the path cannot be written, is no
  // regular file, or is another output's of this process.
  static Result<Output> open(const std::string& source, const std::string& path);
  ~Output();
  Output(Output&& other) noexcept : source_(other.source_), path_(std::move(other.path_)) {
    other.path_.clear();
  }
  Output& operator=(Output&&) = delete;

  // Why it could not be written (what stood there stays), or empty.
  std::string write(const std::function<void(std::ostream&)>& content) const;

 private:
  Output(std::string source, std::string path)
      : source_(std::move(source)), path_(std::move(path)) {}
  std::string source_, path_;
};

// When to write what is gathered while a run goes on: each time that there is twice as much, so
// that all the writing together costs about as much as two at the end.
class Doubling {
 public:
  bool due(std::uint64_t gathered) {
    if (gathered < next_) return false;
    next_ = 2 * gathered;
    return true;
  }

 private:
  std::uint64_t next_ = 256;
};

}  // namespace recoup
