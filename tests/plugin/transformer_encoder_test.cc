#include "recoup/libtorch/transformer_encoder.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "../../examples/activation_meter.h"

namespace {

constexpr int kLayers = 4, kModel = 8, kFfn = 32, kSequence = 6, kBatch = 2;

torch::nn::TransformerEncoderOptions options(torch::nn::activation_t activation, double dropout) {
  return torch::nn::TransformerEncoderOptions(
             torch::nn::TransformerEncoderLayer(torch::nn::TransformerEncoderLayerOptions(kModel, 2)
                                                    .dim_feedforward(kFfn)
                                                    .dropout(dropout)
                                                    .activation(activation)),
             kLayers)
      .norm(torch::nn::AnyModule(torch::nn::LayerNorm(torch::nn::LayerNormOptions({kModel}))));
}

recoup::Host host(const std::string& yaml) {
  const std::string path = testing::TempDir() + "encoder.yaml";
  std::ofstream(path) << yaml;
  recoup::HostOptions options;
  options.name = "encoder test";
  options.torch_version = TORCH_VERSION;
  options.config_path = path;
  options.modules = RECOUP_MLP | RECOUP_MLP_ACTIVATION;
  options.log = [](recoup_log_level, const std::string&) {};
  return recoup::Host(RECOUP_PLUGIN, options);
}

struct Run {
  std::vector<at::Tensor> tensors;
  std::int64_t saved = 0;
};

template <class Encoder>
Run run(Encoder& encoder) {
  torch::manual_seed(2);
  const auto src = at::randn({kSequence, kBatch, kModel}).requires_grad_();
  const auto mask = at::full({kSequence, kSequence}, -INFINITY).triu(1);
  Run result;
  ActivationMeter meter(at::kCPU);
  const auto y = encoder->forward(src, mask);
  result.saved = meter.bytes();
  (y * at::arange(y.numel()).view_as(y)).sum().backward();
  result.tensors = {y.detach(), src.grad()};
  for (const auto& p : encoder->parameters()) result.tensors.push_back(p.grad().clone());
  encoder->zero_grad();
  return result;
}

class Encoder : public testing::TestWithParam<const char*> {};

TEST_P(Encoder, EqualsTheStockModuleBitForBit) {
  for (const torch::nn::activation_t& activation :
       {torch::nn::activation_t(torch::kGELU), torch::nn::activation_t(torch::kReLU),
        torch::nn::activation_t([](const at::Tensor& t) { return at::silu(t); })}) {
    torch::manual_seed(1);
    torch::nn::TransformerEncoder stock(options(activation, 0.1));
    torch::manual_seed(1);
    recoup::TransformerEncoder ours(options(activation, 0.1), host(GetParam()));

    const auto names = stock->named_parameters().keys();
    EXPECT_EQ(names, ours->named_parameters().keys());
    EXPECT_EQ(stock->named_buffers().keys(), ours->named_buffers().keys());
    const auto expected = run(stock), got = run(ours);
    ASSERT_EQ(expected.tensors.size(), got.tensors.size());
    for (std::size_t i = 0; i < got.tensors.size(); ++i) {
      EXPECT_TRUE(at::equal(expected.tensors[i], got.tensors[i])) << i;
    }
    // A checkpoint written by one loads into the other.
    std::stringstream file;
    torch::save(stock, file);
    torch::load(ours, file);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Policies, Encoder,
    testing::Values("", "recompute_granularity: selective\nrecompute_modules: [mlp]\n",
                    "recompute_granularity: selective\nrecompute_modules: [mlp]\n"
                    "recompute_mlp_num_layers: 2\n",
                    "recompute_granularity: selective\nrecompute_modules: [mlp]\n"
                    "mlp_recompute_level: activation\n"));

TEST(EncoderMemory, IsExactForEachLayerAndLevel) {
  const std::string selective = "recompute_granularity: selective\nrecompute_modules: [mlp]\n";
  const auto saved = [&](const std::string& yaml) {
    torch::manual_seed(1);
    recoup::TransformerEncoder encoder(options(torch::kGELU, 0.0), host(yaml));
    return run(encoder).saved;
  };
  const auto plain = saved("");
  const std::int64_t hidden = kSequence * kBatch * kFfn * 4;  // one [rows, ffn] tensor of floats
  for (int n = 1; n <= kLayers; ++n) {
    const auto number = "recompute_mlp_num_layers: " + std::to_string(n) + "\n";
    EXPECT_EQ(plain - saved(selective + number), n * 2 * hidden) << n;  // fc1's and gelu's output
    EXPECT_EQ(plain - saved(selective + number + "mlp_recompute_level: activation\n"), n * hidden);
  }
}

}  // namespace
