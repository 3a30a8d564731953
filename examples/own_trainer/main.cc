// A LibTorch trainer of one's own, before and after recoup: the lines that mention it are all it
// takes.
//   own_trainer librecoup.so [X.yaml]      without arguments: trains without recoup
#include <torch/nn.h>
#include <torch/optim.h>
#include <torch/version.h>

#include <cstdio>

#include "recoup/host.hpp"

struct BlockImpl : torch::nn::Module {
  BlockImpl(const recoup::Host& host, std::int64_t number) : recoup(host.layer({number})) {
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({64})));
    mlp =
        register_module("mlp", torch::nn::Sequential(torch::nn::Linear(64, 256), torch::nn::GELU(),
                                                     torch::nn::Linear(256, 64)));
  }
  at::Tensor forward(const at::Tensor& x) { return x + recoup.mlp(mlp, norm(x)); }

  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Sequential mlp{nullptr};
  recoup::Layer recoup;
};
TORCH_MODULE(Block);

int main(int argc, char** argv) try {
  constexpr int kLayers = 4;
  recoup::HostOptions options;
  options.name = "own_trainer";
  options.torch_version = TORCH_VERSION;
  options.num_layers = kLayers;
  if (argc > 2) options.config_path = argv[2];  // else $RECOUP_CONFIG, or none
  const recoup::Host host = argc > 1 ? recoup::Host(argv[1], options) : recoup::Host();

  torch::manual_seed(1);
  torch::nn::Sequential model;
  for (int number = 1; number <= kLayers; ++number) model->push_back(Block(host, number));
  torch::optim::SGD optimizer(model->parameters(), 0.01);
  for (int step = 1; step <= 3; ++step) {
    optimizer.zero_grad();
    const auto loss = model->forward(torch::randn({32, 64})).square().mean();
    loss.backward();
    optimizer.step();
    std::printf("step %d: loss %.9g\n", step, loss.item<float>());
  }
} catch (const recoup::LoadError& e) {  // says what is wrong and what to do
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
