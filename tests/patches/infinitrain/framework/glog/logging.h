#pragma once
#include <cstdlib>
#include <iostream>
#include <sstream>
struct LogLine {
  const char* level;
  std::ostringstream text;
  explicit LogLine(const char* level) : level(level) {}
  ~LogLine() {
    std::cerr << level << " " << text.str() << std::endl;
    if (level[0] == 'F') std::_Exit(134);
  }
};
inline LogLine log_line(const char* level) { return LogLine(level); }
#define LOG(level) log_line(#level).text
#define LOG_IF(level, condition) \
  if (condition) LOG(level)
#define CHECK(condition) \
  if (!(condition)) LOG(FATAL) << "Check failed: " #condition " "
