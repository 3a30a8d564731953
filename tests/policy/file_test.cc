// Reading a configuration's file: whatever is not a whole regular file is an error, at once.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "recoup/policy/config.h"

namespace recoup {
namespace {

std::string bad(const std::string& path) {
  const auto config = load_config(path);
  EXPECT_FALSE(config.ok()) << path;
  return config.ok() ? "" : config.error().text;
}

class ConfigFile : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }
  void SetUp() override {
    folder_ = testing::TempDir() + "recoup_file_XXXXXX";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override {
    for (const char* name : {"a.yaml", "pipe", "link"}) ::unlink(path(name).c_str());
    ::rmdir(folder_.c_str());
  }
  std::string folder_;
};

TEST_F(ConfigFile, IsReadToItsEnd) {
  EXPECT_TRUE(load_config(write("a.yaml", "")).ok());
  const auto file = write("a.yaml", "recompute_granularity: selective\nrecompute_modules: [mpl]\n");
  EXPECT_EQ(bad(file).find(file + ":2:21: recompute_modules: \"mpl\" is no module"), 0u);
  write("a.yaml", std::string(kLargestConfig, '\n'));
  EXPECT_TRUE(load_config(file).ok());
  write("a.yaml", std::string(kLargestConfig + 1, '\n'));
  EXPECT_EQ(bad(file), file + ": is larger than 1048576 bytes");
  ASSERT_EQ(::symlink(file.c_str(), path("link").c_str()), 0);
  write("a.yaml", "recompute_granularity: selective\n");
  EXPECT_TRUE(load_config(path("link")).ok());
}

TEST_F(ConfigFile, AReadErrorIsNoEmptyFile) {
  EXPECT_EQ(bad("/proc/self/mem"),
            "/proc/self/mem: cannot be read (Input/output error); name an existing YAML file");
}

TEST_F(ConfigFile, OtherKindsOfFilesAreRefusedWithoutWaiting) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_EQ(bad(path("pipe")),
            path("pipe") + ": is a pipe, as <(...) makes it; name a regular file");
  EXPECT_EQ(bad("/dev/zero"), "/dev/zero: is no regular file; name a YAML file");
  EXPECT_EQ(bad(folder_), folder_ + ": is a folder; name a YAML file");
}

TEST_F(ConfigFile, MissingOnesSayWhy) {
  EXPECT_EQ(bad("/no/such.yaml"),
            "/no/such.yaml: cannot be read (No such file or directory); name an existing YAML "
            "file");
  EXPECT_EQ(bad(path("a\n.yaml")).find(folder_ + "/a\\n.yaml: cannot be read"), 0u);
  EXPECT_NE(bad(std::string(5000, 'x')).find("File name too long"), std::string::npos);
  EXPECT_FALSE(load_config(std::string("a\0b", 3)).ok());
  EXPECT_FALSE(load_config("").ok());
}

}  // namespace
}  // namespace recoup
