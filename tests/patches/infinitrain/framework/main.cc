// Builds a model of two pipeline stages, runs one step, and prints the loss, a hash of all gradients,
// the floats alive before backward, and how often each kernel ran. Arguments: --flag=value for the
// flags that are there, and rope, swiglu, moe, or rank=N (the thread's rank while stage 2 is built).
#include <cstdio>
#include <cstring>

#include "gflags/gflags.h"
#include "infini_train/include/autograd/function.h"
#include "infini_train/include/nn/modules/transformer/ops.h"
#include "infini_train/include/nn/modules/transformer/transformer.h"
#include "infini_train/include/nn/parallel/global.h"

using namespace infini_train;

int main(int argc, char** argv) {
  nn::TransformerConfig config;
  int stage_2_rank = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto equals = argument.find('=');
    if (argument == "rope") config.rope = true;
    else if (argument == "swiglu") config.swiglu = true;
    else if (argument == "moe") config.moe_from_layer_3 = true;
    else if (argument.rfind("rank=", 0) == 0) stage_2_rank = std::atoi(argv[i] + 5);
    else if (equals != std::string::npos && gflags::flags().count(argument.substr(2, equals - 2))) {
      *gflags::flags()[argument.substr(2, equals - 2)] = argument.substr(equals + 1);
    } else {
      std::fprintf(stderr, "unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  nn::parallel::global::data_parallel_size = 2;
  nn::TransformerChunk first(config, 0, 2);
  nn::parallel::global::thread_global_rank = stage_2_rank;
  nn::TransformerChunk second(config, 2, 4);

  std::vector<float> values(8);
  for (int i = 0; i < 8; ++i) values[i] = 0.1f * (i - 3);
  const auto input = std::make_shared<Tensor>(values, true);
  const long before = Tensor::live;
  auto loss = second.Forward(first.Forward({input}))[0];
  std::printf("alive %ld\n", Tensor::live - before);
  autograd::Backward(loss);
  uint64_t hash = 1469598103934665603ull;
  const auto add = [&hash](const std::vector<float>& v) {
    for (float f : v) {
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      hash = (hash ^ bits) * 1099511628211ull;
    }
  };
  add(*loss->value);
  add(input->grad);
  for (const auto& p : nn::Parameters()) add(p->grad);
  std::printf("hash %016llx\n", static_cast<unsigned long long>(hash));
  for (const auto& [type, count] : autograd::Function::runs) std::printf("%s %d\n", type.c_str(), count);
  loss.reset();
}
