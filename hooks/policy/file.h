// A whole small file.
#pragma once

#include <string>

#include "recoup/result.h"

namespace recoup {

// The bytes of the regular file `path`, at most `most` of them. Anything else is an error that
// names the file and the kind of file ("YAML file", "timeline") to name instead: a pipe or a
// device, of which nobody knows when it ends, and a file that cannot be read to its end.
Result<std::string> read_file(const std::string& path, std::size_t most, const std::string& kind);

}  // namespace recoup
