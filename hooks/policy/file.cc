#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>

#include "text.h"

namespace recoup {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// Why a file of this kind is not read, or empty.
std::string not_regular(const struct stat& file, const std::string& kind) {
  if (S_ISREG(file.st_mode)) return {};
  if (S_ISDIR(file.st_mode)) return "is a folder; name a " + kind;
  if (S_ISFIFO(file.st_mode)) {
    return "is a pipe, as <(...) makes it; name a regular file";
  }
  return "is no regular file; name a " + kind;
}

}  // namespace

Result<std::string> read_file(const std::string& path, std::size_t most, const std::string& kind) {
  const auto name = text::printable(path, std::numeric_limits<std::size_t>::max());
  const auto problem = [&](const std::string& what) { return Error{name + ": " + what}; };
  const auto failed = [&] {
    const auto why = std::generic_category().message(errno);
    return problem("cannot be read (" + why + "); name an existing " + kind);
  };
  if (path.find('\0') != std::string::npos) return problem("is no file name");
  struct stat file {};
  // Asked before it is opened too: opening alone can wait, or do something to a device.
  if (::stat(path.c_str(), &file) != 0) return failed();
  if (const auto why = not_regular(file, kind); !why.empty()) return problem(why);
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (descriptor.get() < 0 || ::fstat(descriptor.get(), &file) != 0) return failed();
  if (const auto why = not_regular(file, kind); !why.empty()) return problem(why);

  std::string content(most + 1, '\0');
  std::size_t size = 0;
  while (size < content.size()) {
    const auto got = ::read(descriptor.get(), &content[size], content.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed();
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  if (size > most) return problem("is larger than " + std::to_string(most) + " bytes");
  // Files of /proc have no size.
  if (file.st_size > 0 && static_cast<std::size_t>(file.st_size) != size) {
    return problem("changed while it was read: " + std::to_string(size) + " bytes of " +
                   std::to_string(file.st_size));
  }
  content.resize(size);
  return content;
}

}  // namespace recoup
