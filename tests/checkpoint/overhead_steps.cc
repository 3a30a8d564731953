// Training steps of one MLP of 8 x 16, for callgrind: overhead_steps.py counts instructions, which
// no other load on the machine changes. Only the steps are counted, not the loading of LibTorch.
//
//   overhead_steps STEPS
//
// Four ways, each of which callgrind writes a file about, called as it is:
//   plain  no checkpoint
//   floor  what no checkpoint can do without: hooks that keep nothing, and fc1 and the activation
//          once more, with history, under such hooks
//   one    the MLP as one part, with early stop
//   parts  in two parts
#include <torch/torch.h>
#include <valgrind/callgrind.h>

#include <cstdlib>
#include <functional>
#include <string>

#include "../../hooks/checkpoint/saved_tensors.h"
#include "recoup/checkpoint/checkpoint.h"

namespace {

struct Keep final : recoup::torch_private::SavedVariableHooks {
  explicit Keep(int) {}
  void call_pack_hook(const at::Tensor& t) override { data = t.tensor_data(); }
  at::Tensor call_unpack_hook() override { return data; }
  at::Tensor data;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  torch::set_num_threads(1);
  torch::manual_seed(1);
  torch::nn::Linear fc1(16, 64), fc2(64, 16);
  const auto x = at::randn({8, 16}).set_requires_grad(true);
  const auto first = [&](const recoup::Tensors& in) -> recoup::Tensors {
    return {at::gelu(fc1(in[0]))};
  };
  const auto rest = [&](const recoup::Tensors& in) -> recoup::Tensors { return {fc2(in[0])}; };
  const auto run = [&](const std::string& way) {
    at::Tensor y;
    if (way == "one") {
      y = recoup::checkpoint([&](const recoup::Tensors& in) { return rest(first(in)); }, {x})[0];
    } else if (way == "parts") {
      y = recoup::checkpoint_parts(first, rest, {x})[0];
    } else if (way == "floor") {
      const recoup::HooksOf<Keep, int> hooks(0);
      y = rest(first({x}))[0];
      first({x.detach().requires_grad_()});
    } else {
      y = rest(first({x}))[0];
    }
    y.sum().backward();
  };
  for (const std::string way : {"plain", "floor", "one", "parts"}) {
    for (int step = 0; step < 3; ++step) run(way);
    CALLGRIND_START_INSTRUMENTATION;
    run(way);  // callgrind itself warms up
    CALLGRIND_ZERO_STATS;
    for (int step = std::atoi(argv[1]); step > 0; --step) run(way);
    CALLGRIND_DUMP_STATS_AT(way.c_str());
    CALLGRIND_STOP_INSTRUMENTATION;
  }
}
