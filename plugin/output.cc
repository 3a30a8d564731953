#include "output.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <system_error>

namespace recoup {
namespace {

namespace fs = std::filesystem;

// The paths of this process that are being written. Never destroyed: a plugin may be closed while
// the process ends.
struct Open {
  std::mutex mutex;
  std::set<std::string> paths;
};
Open& open_paths() {
  static auto& open = *new Open();
  return open;
}

std::string temporary(const std::string& path) {
  return path + ".tmp-" + std::to_string(::getpid());
}

// Writes to a file beside `path` and moves it there, or empty where that works; `keep` false:
// removes it again.
std::string replace(const std::string& path, const std::function<void(std::ostream&)>& content,
                    bool keep) {
  const auto beside = temporary(path);
  const auto problem = [&] {
    const std::string why = std::strerror(errno);
    std::error_code ignored;
    fs::remove(beside, ignored);
    return path + ": cannot be written: " + why;
  };
  errno = 0;
  std::ofstream file(beside, std::ios::binary | std::ios::trunc);
  if (!file) return problem();
  content(file);
  file.close();
  if (!file) return problem();
  if ((keep ? std::rename(beside.c_str(), path.c_str()) : ::unlink(beside.c_str())) != 0) {
    return problem();
  }
  return {};
}

}  // namespace

Result<Output> Output::open(const std::string& source, const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    return Error{source + "=" + path + ": " + why};
  };
  std::error_code error;
  // A link is followed, so that the file it names is replaced and not the link.
  auto real = fs::weakly_canonical(path, error).string();
  if (error) return refuse("cannot be written: " + error.message());
  if (fs::exists(real, error) && !fs::is_regular_file(real, error)) {
    return refuse("is no regular file; a new file is put in its place, so it must be one");
  }
  if (const auto why = replace(
          real, [](std::ostream& out) { out << "{}\n"; }, false);
      !why.empty()) {
    return Error{source + "=" + why};
  }
  auto& open = open_paths();
  const std::lock_guard<std::mutex> guard(open.mutex);
  if (!open.paths.insert(real).second) {
    return refuse(
        "is written already, by another setting or another plugin of this process; each "
        "needs a file of its own");
  }
  return Output(source, std::move(real));
}

Output::~Output() {
  if (path_.empty()) return;
  auto& open = open_paths();
  const std::lock_guard<std::mutex> guard(open.mutex);
  open.paths.erase(path_);
}

std::string Output::write(const std::function<void(std::ostream&)>& content) const {
  const auto why = replace(path_, content, true);
  return why.empty() ? why : source_ + "=" + why;
}

}  // namespace recoup
