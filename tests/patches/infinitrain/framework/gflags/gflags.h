#pragma once
#include <map>
#include <string>
namespace gflags {
struct CommandLineFlagInfo {
  std::string current_value;
};
inline std::map<std::string, std::string*>& flags() {
  static std::map<std::string, std::string*> all;
  return all;
}
struct Register {
  Register(const char* name, std::string* value) { flags()[name] = value; }
};
inline bool GetCommandLineFlagInfo(const char* name, CommandLineFlagInfo* info) {
  const auto found = flags().find(name);
  if (found != flags().end()) info->current_value = *found->second;
  return found != flags().end();
}
}  // namespace gflags
#define DEFINE_string(name, value, help)  \
  std::string FLAGS_##name = value;       \
  static gflags::Register register_##name(#name, &FLAGS_##name)
