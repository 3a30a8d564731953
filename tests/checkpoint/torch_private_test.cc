// That recoup's engine forwards every virtual function that the engine of the LibTorch in use has.
// A new one compiles without a word, and would be lost for the whole process: so the two tables of
// virtual functions are compared.
#include "../../hooks/checkpoint/torch_private.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <link.h>

#include <cstdlib>

#include "../../examples/activation_meter.h"
#include "fixtures.h"

namespace recoup {
namespace {

using torch_private::Engine;

// The functions of Engine's table that `engine` answers with Engine's own code, by name.
std::vector<std::string> not_overridden(const Engine& engine) {
  // Of the Itanium C++ ABI: two words, then a pointer for each virtual function.
  void* symbol = dlsym(RTLD_DEFAULT, "_ZTVN5torch8autograd6EngineE");
  if (symbol == nullptr) return {"torch::autograd::Engine has no table of virtual functions"};
  Dl_info where;
  ElfW(Sym)* entry = nullptr;
  dladdr1(symbol, &where, reinterpret_cast<void**>(&entry), RTLD_DL_SYMENT);
  const auto* theirs = static_cast<void* const*>(symbol) + 2;
  const auto* ours = *reinterpret_cast<void* const* const*>(&engine);
  std::vector<std::string> names;
  for (std::size_t i = 0; i + 2 < entry->st_size / sizeof(void*); ++i) {
    if (ours[i] != theirs[i]) continue;
    Dl_info function;
    std::string name = "virtual function " + std::to_string(i);
    if (dladdr(theirs[i], &function) != 0 && function.dli_sname != nullptr) {
      int status = 0;
      char* readable = abi::__cxa_demangle(function.dli_sname, nullptr, nullptr, &status);
      if (readable != nullptr) name = readable;
      std::free(readable);
    }
    names.push_back(name);
  }
  return names;
}

TEST(TorchPrivate, EveryVirtualFunctionOfTheEngineIsForwarded) {
  using namespace recoup::testing;
  checkpoint(of(seeded_mlp()), {input()});  // puts recoup's engine in place
  for (const auto& name : not_overridden(Engine::get_default_engine())) {
    // Protected, and called by an engine's own threads only: those of the engine within ours.
    if (name.find("::thread_main(") != std::string::npos) continue;
    ADD_FAILURE() << "LibTorch " << TORCH_VERSION << ": recoup's engine does not forward " << name
                  << "; add it to HookingEngine in hooks/checkpoint/saved_tensors.cc";
  }
}

// What `import torch` does after the engine's first use: another engine in place of ours.
TEST(TorchPrivate, AnEngineThatReplacesOursIsWrappedAgain) {
  using namespace recoup::testing;
  const auto x = input({16, 8});
  const auto held = [&](const Forward& forward) {
    ActivationMeter meter(at::kCPU);
    const auto y = checkpoint(forward, {x})[0];
    return meter.bytes() - y.numel() * 4;
  };
  const auto mlp = of(seeded_mlp());
  EXPECT_EQ(held(mlp), 0);
  struct Other : Engine {};
  static Other other, another;
  torch_private::set_default_engine_stub([]() -> Engine& { return other; });
  EXPECT_EQ(held(mlp), 0);
  Engine& wrapped = Engine::get_default_engine();
  EXPECT_NE(&wrapped, &other);
  // Another copy of recoup wraps ours: nothing to do, or they would wrap each other for ever.
  struct Copy : Engine {
    std::unique_ptr<torch_private::SavedVariableHooks> get_default_saved_variable_hooks() override {
      return inner->get_default_saved_variable_hooks();
    }
    Engine* inner = nullptr;
  };
  static Copy copy;
  copy.inner = &wrapped;
  torch_private::set_default_engine_stub([]() -> Engine& { return copy; });
  EXPECT_EQ(held(mlp), 0);
  EXPECT_EQ(held(mlp), 0);
  EXPECT_EQ(&Engine::get_default_engine(), &copy);

  // Replaced within a forward: what that one saved is kept, and that is said; the next is right.
  struct Warnings : c10::WarningHandler {
    void process(const c10::Warning& warning) override { lines.push_back(warning.msg()); }
    std::vector<std::string> lines;
  } warnings;
  c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  EXPECT_EQ(held([](const Tensors& in) -> Tensors { return {in[0].view({8, 16}) + 1}; }), 0);
  EXPECT_THAT(warnings.lines, ::testing::IsEmpty());  // a forward that saves nothing
  const auto replacing = [&](const Tensors& in) -> Tensors {
    torch_private::set_default_engine_stub([]() -> Engine& { return another; });
    return mlp(in);
  };
  EXPECT_EQ(held(replacing), 2 * 16 * 32 * 4);
  EXPECT_THAT(warnings.lines, ::testing::ElementsAre(
                                  ::testing::HasSubstr("engine was replaced while this forward")));
  EXPECT_EQ(held(mlp), 0);
  for (const auto& name : not_overridden(Engine::get_default_engine())) {
    EXPECT_THAT(name, ::testing::HasSubstr("::thread_main("));
  }
}

// The check above can fail.
TEST(TorchPrivate, AFunctionThatIsNotForwardedIsNamed) {
  struct Forgetful : Engine {
    std::unique_ptr<torch_private::SavedVariableHooks> get_default_saved_variable_hooks() override {
      return nullptr;
    }
  };
  const Forgetful engine;
  const auto names = not_overridden(engine);
  using ::testing::Contains;
  using ::testing::HasSubstr;
  EXPECT_THAT(names, Contains(HasSubstr("Engine::thread_on_exception")));
  EXPECT_THAT(names, Contains(HasSubstr("Engine::execute(")));
  EXPECT_THAT(names, ::testing::Not(Contains(HasSubstr("saved_variable_hooks"))));
}

}  // namespace
}  // namespace recoup
