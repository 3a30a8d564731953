// What the trainer tells: progress while it trains, and the --report file.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace gpt {

// The --report file: opened before training, so that a wrong path costs no run.
class Report {
 public:
  explicit Report(const std::string& path) : path_(path) {
    if (path.empty()) return;
    fresh_ = ::access(path.c_str(), F_OK) != 0;
    file_ = std::fopen(path.c_str(), "a");  // what stands there stays until there is more to say
    if (file_ == nullptr) fail();
  }
  ~Report() {
    if (file_ == nullptr) return;
    std::fclose(file_);  // never written: the run failed
    if (fresh_) std::remove(path_.c_str());
  }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  void write(const nlohmann::json& content) {
    if (file_ == nullptr) return;
    file_ = std::freopen(path_.c_str(), "w", file_);
    if (file_ == nullptr) fail();
    std::fputs((content.dump(2) + "\n").c_str(), file_);
    if (std::fclose(std::exchange(file_, nullptr)) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw std::runtime_error("--report " + path_ + ": cannot be written: " + std::strerror(errno));
  }
  std::string path_;
  std::FILE* file_ = nullptr;
  bool fresh_ = false;
};

class Progress {
 public:
  explicit Progress(std::int64_t steps) : steps_(steps), terminal_(isatty(STDERR_FILENO) != 0) {}
  void show(std::int64_t step, double loss, double tokens_per_second) const {
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(kWidth * step / steps_);
    // Without a terminal: about ten lines in all.
    if (!terminal_ && step % std::max<std::int64_t>(steps_ / 10, 1) != 0 && step != steps_) return;
    std::fprintf(stderr, "%s[%s%s] %lld/%lld  loss %.4f  %.0f tokens/s%s", terminal_ ? "\r" : "",
                 std::string(filled, '#').c_str(), std::string(kWidth - filled, '.').c_str(),
                 static_cast<long long>(step), static_cast<long long>(steps_), loss,
                 tokens_per_second, terminal_ && step < steps_ ? "" : "\n");
  }

 private:
  std::int64_t steps_;
  bool terminal_;
};

// What a step takes once warmed up: the median of the steps but the first quarter.
inline double steady_seconds(std::vector<double> steps) {
  steps.erase(steps.begin(),
              steps.begin() + static_cast<std::ptrdiff_t>((steps.size() + 3) / 4 % steps.size()));
  const auto middle = steps.begin() + static_cast<std::ptrdiff_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end());
  return *middle;
}

}  // namespace gpt
