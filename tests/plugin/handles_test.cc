#include "../../plugin/handles.h"

#include <gtest/gtest.h>

#include <thread>

namespace {

struct Counted {
  explicit Counted(std::atomic<int>& alive) : alive(alive) { ++alive; }
  ~Counted() { --alive; }
  std::atomic<int>& alive;
};
using Handles = recoup::Handles<Counted>;

TEST(Handles, LiveOnesAreToldFromAllOthers) {
  std::atomic<int> alive{0};
  Handles handles, others;
  void* const a = handles.open(std::make_unique<Counted>(alive));
  EXPECT_TRUE(Handles::Pin(handles, a));
  EXPECT_FALSE(Handles::Pin(others, a));
  EXPECT_FALSE(others.close(a));
  EXPECT_TRUE(handles.close(a));
  EXPECT_EQ(alive, 0);
  EXPECT_FALSE(Handles::Pin(handles, a));
  EXPECT_FALSE(handles.close(a));
  // The same slot again is another handle.
  void* const b = handles.open(std::make_unique<Counted>(alive));
  EXPECT_NE(a, b);
  EXPECT_FALSE(handles.close(a));
  EXPECT_EQ(alive, 1);
  EXPECT_TRUE(handles.close(b));
}

TEST(Handles, APinnedObjectOutlivesItsClose) {
  std::atomic<int> alive{0};
  Handles handles;
  void* const a = handles.open(std::make_unique<Counted>(alive));
  {
    const Handles::Pin pin(handles, a);
    EXPECT_TRUE(handles.close(a));
    EXPECT_EQ(alive, 1);
    EXPECT_FALSE(handles.close(a));
  }
  EXPECT_EQ(alive, 0);
}

TEST(Handles, RunOutInTheEndAndComeBack) {
  std::atomic<int> alive{0};
  Handles handles;
  std::vector<void*> all;
  while (void* handle = handles.open(std::make_unique<Counted>(alive))) all.push_back(handle);
  EXPECT_EQ(all.size(), Handles::kSlots);
  EXPECT_EQ(alive, static_cast<int>(Handles::kSlots));
  EXPECT_TRUE(handles.close(all.back()));
  EXPECT_NE(handles.open(std::make_unique<Counted>(alive)), nullptr);
}

// Opened, pinned and closed by many threads: each object is freed once, no stale handle is taken
// for a live one.
TEST(Handles, Threads) {
  std::atomic<int> alive{0}, wrong{0};
  Handles handles;
  std::atomic<void*> shared{nullptr};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        void* const mine = handles.open(std::make_unique<Counted>(alive));
        void* const theirs = shared.exchange(mine);
        if (!Handles::Pin(handles, theirs) && theirs != nullptr && handles.close(theirs)) ++wrong;
        handles.close(theirs);
        if (Handles::Pin(handles, theirs)) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(alive, 1);  // the last one shared
  EXPECT_TRUE(handles.close(shared));
  EXPECT_EQ(alive, 0);
}

}  // namespace
