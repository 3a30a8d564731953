// The engine on a device whose streams run late: numbers, random numbers, streams, memory.
//
// What is compared is a run with checkpoint() against the same run without, on the same device, and
// where no random numbers are drawn against the CPU; all to the bit. A missing wait reads poison
// (NaN).
#include "device.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "recoup/checkpoint/checkpoint.h"

namespace recoup {
namespace {

using testdev::device;

constexpr std::int64_t kRows = 4, kHidden = 8, kFfn = 16;

at::Tensor leaf(const at::Tensor& t, at::Device on) {
  return t.to(on).detach().clone().requires_grad_();
}

at::Tensor numbers(c10::IntArrayRef sizes, std::uint64_t seed) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed));
}

struct Mlp {
  at::Tensor w1, b1, w2, b2;
  explicit Mlp(at::Device on, std::uint64_t seed = 1)
      : w1(leaf(numbers({kFfn, kHidden}, seed), on)),
        b1(leaf(numbers({kFfn}, seed + 1), on)),
        w2(leaf(numbers({kHidden, kFfn}, seed + 2), on)),
        b2(leaf(numbers({kHidden}, seed + 3), on)) {}

  at::Tensor fc1(const at::Tensor& x) const { return at::linear(x, w1, b1); }
  at::Tensor fc2(const at::Tensor& h) const { return at::linear(h, w2, b2); }
  at::Tensor operator()(const at::Tensor& x) const { return fc2(at::gelu(fc1(x))); }
};

Tensors on_cpu(Tensors tensors) {
  for (auto& t : tensors) t = t.defined() ? t.detach().to(at::kCPU) : t;
  return tensors;
}

// What a model of `layers` gives with `forward(mlp, x)` for each: its output, and all gradients.
template <class F>
Tensors results(at::Device on, int layers, F forward) {
  std::vector<Mlp> mlps;
  for (int i = 0; i < layers; ++i) mlps.emplace_back(on, 10 * i);
  const auto input = leaf(numbers({kRows, kHidden}, 77), on);
  auto x = input;
  for (const auto& mlp : mlps) x = x + forward(mlp, x);
  x.sum().backward();
  Tensors all{x, input.grad()};
  for (const auto& m : mlps)
    all.insert(all.end(), {m.w1.grad(), m.b1.grad(), m.w2.grad(), m.b2.grad()});
  return on_cpu(all);
}

void expect_equal(const Tensors& a, const Tensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << "tensor " << i;
}

at::Tensor recomputed(const Mlp& mlp, const at::Tensor& x) {
  return checkpoint([mlp](const at::Tensor& in) { return mlp(in); }, x);
}

at::Tensor plain(const Mlp& mlp, const at::Tensor& x) { return mlp(x); }

// `later` waits for what `earlier` has to do now: what a careful user of streams writes.
void order(const c10::Stream& earlier, const c10::Stream& later) {
  c10::Event event(c10::kPrivateUse1);
  event.record(earlier);
  event.block(later);
}

// The wanted numbers come from a run on one stream, where nothing can be late.
c10::Stream stream_if(bool another) {
  return another ? testdev::new_stream(0) : testdev::current_stream(0);
}

// Delays that differ from test to test and from run to run of a schedule; RECOUP_SEED repeats one.
class OnTheDevice : public testing::Test {
 protected:
  static std::uint64_t base_seed() {
    static const std::uint64_t seed = [] {
      const char* given = std::getenv("RECOUP_SEED");
      const std::uint64_t chosen =
          given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
      std::printf("RECOUP_SEED=%llu\n", static_cast<unsigned long long>(chosen));
      return chosen;
    }();
    return seed;
  }
  void SetUp() override { schedule(0); }
  void TearDown() override { testdev::synchronize_all(); }
  // Long delays make it sure that what nobody waits for is late, also on a busy machine.
  static void schedule(std::uint64_t number, int microseconds = 60) {
    testdev::set_delays(base_seed() + number, microseconds);
  }
};

TEST_F(OnTheDevice, EqualsTheCpuAndThePlainRun) {
  const auto cpu = results(at::kCPU, 3, plain);
  expect_equal(results(device(), 3, plain), cpu);
  expect_equal(results(device(), 3, recomputed), cpu);
}

TEST_F(OnTheDevice, KeepsItsInputsOnly) {
  const auto kept = [](auto forward) {
    const Mlp mlp(device());
    const auto x = leaf(numbers({kRows, kHidden}, 5), device());
    const auto before = testdev::bytes_now(0);
    const auto y = forward(mlp, x);
    return testdev::bytes_now(0) - before;
  };
  EXPECT_EQ(kept(plain) - kept(recomputed), 2 * kRows * kFfn * 4);  // fc1's output and gelu's
}

TEST_F(OnTheDevice, DropoutDrawsTheSameAgain) {
  const auto with_dropout = [](bool checkpointed) {
    testdev::default_generator(0).unsafeGetGeneratorImpl()->set_current_seed(9);
    const auto tensors = results(device(), 3, [checkpointed](const Mlp& mlp, const at::Tensor& x) {
      const auto forward = [mlp](const at::Tensor& in) {
        return mlp.fc2(at::dropout(at::gelu(mlp.fc1(in)), 0.5, true));
      };
      return checkpointed ? checkpoint(forward, x) : forward(x);
    });
    auto all = tensors;  // and the generator stands where it would
    all.push_back(at::empty({8}, at::TensorOptions().device(device())).uniform_().to(at::kCPU));
    return all;
  };
  expect_equal(with_dropout(true), with_dropout(false));
}

// The inputs are on the CPU; what counts is where the forward runs.
TEST_F(OnTheDevice, AForwardThatMovesToADeviceDrawsTheSameAgain) {
  for (const c10::DeviceIndex index : {0, 1}) {
    const auto run = [index](bool checkpointed) {
      testdev::default_generator(index).unsafeGetGeneratorImpl()->set_current_seed(9);
      const Mlp mlp(device(index));
      const auto x = leaf(numbers({kRows, kHidden}, 5), at::kCPU);
      const auto forward = [mlp, index](const at::Tensor& in) {
        return mlp.fc2(at::dropout(at::gelu(mlp.fc1(in.to(device(index)))), 0.5, true));
      };
      (checkpointed ? checkpoint(forward, x) : forward(x)).sum().backward();
      return on_cpu({x.grad(), mlp.w1.grad(), mlp.w2.grad()});
    };
    expect_equal(run(true), run(false));
  }
}

TEST_F(OnTheDevice, ForwardOnOneStreamBackwardCalledOnAnother) {
  const auto run = [](auto layer) {
    const auto forwards = testdev::new_stream(0), backwards = testdev::new_stream(0);
    const Mlp mlp(device());
    const auto x = leaf(numbers({kRows, kHidden}, 5), device());
    at::Tensor loss;
    order(testdev::current_stream(0), forwards);
    {
      const c10::StreamGuard guard(forwards);
      loss = layer(mlp, x).sum();
    }
    const c10::StreamGuard guard(backwards);
    order(forwards, backwards);
    loss.backward();
    return on_cpu({x.grad(), mlp.w1.grad(), mlp.w2.grad()});
  };
  expect_equal(run(recomputed), run(plain));
}

// What the current stream does from here on comes late: whoever does not wait for it reads poison.
void be_late(int milliseconds = 30) {
  testdev::enqueue(testdev::current_stream(0), [milliseconds] {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  });
}

// Saves its input and gives a number to the host, without waiting for the device: its backward has
// no stream of its own and runs on whatever stream the caller of backward() has. It reads the saved
// tensor there, once before it returns and once more later, into `seen`, when the saved tensor is
// freed already.
thread_local at::Tensor seen;
struct ToHost : torch::autograd::Function<ToHost> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& t) {
    context->save_for_backward({t});
    return at::ones({}, at::kFloat);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables()[0];
    const auto grad = at::ones_like(saved) * grads[0].item<float>() + saved * 0;
    // Autograd knows of no stream here that the next node could wait for.
    testdev::synchronize(testdev::current_stream(0));
    be_late();  // with what was freed by then
    seen = saved * 1;
    return {grad};
  }
};

TEST_F(OnTheDevice, AReaderOnAnotherStreamWaitsForTheRecompute) {
  const auto run = [](bool checkpointed) {
    const auto forwards = stream_if(checkpointed), backwards = stream_if(checkpointed);
    const Mlp mlp(device());
    const auto x = leaf(numbers({kRows, kHidden}, 5), device());
    order(testdev::current_stream(0), forwards);
    at::Tensor loss;
    {
      const c10::StreamGuard guard(forwards);
      const auto forward = [mlp](const at::Tensor& in) {
        be_late();
        return ToHost::apply(at::gelu(mlp.fc1(in)));
      };
      loss = checkpointed ? checkpoint(forward, x) : forward(x);
    }
    const c10::StreamGuard guard(backwards);
    loss.backward();
    return on_cpu({x.grad(), mlp.w1.grad(), seen});
  };
  for (int i = 0; i < 3; ++i) {
    schedule(i);
    expect_equal(run(true), run(false));
  }
}

TEST_F(OnTheDevice, PackedInputsComeBackOnTheCallersStream) {
  const auto run = [](bool packed) {
    const auto forwards = stream_if(packed), backwards = stream_if(packed);
    const Mlp mlp(device());
    const auto x = leaf(numbers({kRows, kHidden}, 5), device());
    order(testdev::current_stream(0), forwards);
    CheckpointOptions options;
    if (packed) {  // offloaded to the host
      options.pack_inputs = [](const Tensors& in) { return Tensors{in[0].to(at::kCPU)}; };
      options.unpack_inputs = [](const Tensors& held) {
        be_late(250);  // later than forward and recompute are by themselves, 30 ms each
        return Tensors{held[0].to(device())};
      };
    }
    at::Tensor loss;
    {
      const c10::StreamGuard guard(forwards);
      const auto forward = [mlp](const at::Tensor& in) {
        be_late();
        return ToHost::apply(at::gelu(mlp.fc1(in)));
      };
      loss = checkpoint(forward, x, options);
    }
    const c10::StreamGuard guard(backwards);
    loss.backward();
    return on_cpu({x.grad(), mlp.w1.grad(), seen});
  };
  for (int i = 0; i < 3; ++i) {
    schedule(i);
    expect_equal(run(true), run(false));
  }
}

TEST_F(OnTheDevice, InputsMadeOnAThirdStream) {
  const auto run = [](auto layer) {
    const auto producer = testdev::new_stream(0), forwards = testdev::new_stream(0);
    const Mlp mlp(device());
    const auto x = leaf(numbers({kRows, kHidden}, 5), device());
    order(testdev::current_stream(0), producer);
    at::Tensor made;
    {
      const c10::StreamGuard guard(producer);
      made = at::gelu(x * 2);
    }
    order(producer, forwards);
    const c10::StreamGuard guard(forwards);
    testdev::record_stream(made.storage().data_ptr(), forwards);
    layer(mlp, made).sum().backward();
    made.reset();
    return on_cpu({x.grad(), mlp.w1.grad()});
  };
  for (int i = 0; i < 20; ++i) {
    schedule(i);
    expect_equal(run(recomputed), run(plain));
  }
}

TEST_F(OnTheDevice, ARegionOnEachOfTwoDevices) {
  const auto run = [](auto layer) {
    const Mlp first(device(0)), second(device(1), 50);
    const auto x = leaf(numbers({kRows, kHidden}, 5), device(0));
    const auto h = layer(first, x);
    layer(second, h.to(device(1))).sum().backward();
    return on_cpu({x.grad(), first.w1.grad(), second.w1.grad(), second.b2.grad()});
  };
  for (int i = 0; i < 10; ++i) {
    schedule(i);
    expect_equal(run(recomputed), run(plain));
  }
}

TEST_F(OnTheDevice, SixteenThreadsAtOnce) {
  const auto expected = results(device(), 2, plain);
  std::vector<Tensors> got(16);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < got.size(); ++i) {
    threads.emplace_back([&got, i] {
      const c10::StreamGuard guard(testdev::new_stream(0));
      got[i] = results(device(), 2, recomputed);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& one : got) expect_equal(one, expected);
}

TEST_F(OnTheDevice, AnExceptionWithWorkQueuedLeavesAllUsable) {
  for (int i = 0; i < 10; ++i) {
    schedule(i);
    const Mlp mlp(device());
    const auto x = leaf(numbers({kRows, kHidden}, 5), device());
    int runs = 0;
    const auto y = checkpoint(
        [mlp, &runs](const at::Tensor& in) {
          const auto h = at::gelu(mlp.fc1(in));
          if (++runs == 2) throw std::runtime_error("the second run fails");
          return mlp.fc2(h) * h.sum();
        },
        x);
    const auto held = testdev::bytes_now(0);
    EXPECT_THROW(y.sum().backward({}, /*retain_graph=*/true), std::runtime_error);
    testdev::synchronize_all();
    EXPECT_EQ(testdev::bytes_now(0), held);  // nothing that the broken recompute made is left
    y.sum().backward();
    const auto wanted = [&] {
      const auto again = leaf(x, device());
      const auto h = at::gelu(mlp.fc1(again));
      (mlp.fc2(h) * h.sum()).sum().backward();
      return again.grad();
    }();
    EXPECT_TRUE(at::equal(x.grad().to(at::kCPU), wanted.to(at::kCPU)));
  }
}

TEST_F(OnTheDevice, TwoThreadsReadOneRetainedGraph) {
  const Mlp mlp(device());
  const auto x = leaf(numbers({kRows, kHidden}, 5), device());
  const auto wanted = on_cpu(torch::autograd::grad({mlp(x).sum()}, {x}))[0];
  for (int i = 0; i < 20; ++i) {
    schedule(i);
    const auto y = recomputed(mlp, x).sum();
    std::vector<at::Tensor> got(4);
    std::vector<std::thread> threads;
    for (auto& one : got) {
      threads.emplace_back([&] {
        const c10::StreamGuard guard(testdev::new_stream(0));
        order(testdev::default_stream(0), testdev::current_stream(0));
        one = on_cpu(torch::autograd::grad({y}, {x}, {}, /*retain_graph=*/true))[0];
      });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& one : got) EXPECT_TRUE(at::equal(one, wanted)) << "schedule " << i;
  }
}

TEST_F(OnTheDevice, TwoThreadsRecomputeDropout) {
  const auto run = [](bool threads) {
    testdev::default_generator(0).unsafeGetGeneratorImpl()->set_current_seed(9);
    const Mlp mlp(device());
    std::vector<at::Tensor> inputs, losses;
    for (int i = 0; i < 4; ++i) {
      inputs.push_back(leaf(numbers({kRows, kHidden}, i), device()));
      losses.push_back(checkpoint(
                           [mlp](const at::Tensor& in) {
                             auto h = in;
                             for (int k = 0; k < 4; ++k) {
                               h = at::dropout(mlp(h), 0.5, true);
                               // The other threads' turn, were they let in.
                               std::this_thread::sleep_for(std::chrono::microseconds(300));
                             }
                             return h;
                           },
                           inputs.back())
                           .sum());
    }
    std::vector<at::Tensor> grads(4);
    std::vector<std::thread> workers;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      const auto work = [&, i] {
        grads[i] = on_cpu(torch::autograd::grad({losses[i]}, {inputs[i]}))[0];
      };
      if (threads) {
        workers.emplace_back(work);
      } else {
        work();
      }
    }
    for (auto& worker : workers) worker.join();
    return grads;
  };
  for (int i = 0; i < 10; ++i) {
    schedule(i);
    expect_equal(run(true), run(false));
  }
}

TEST_F(OnTheDevice, RegionsNestAndGraphsAreRetained) {
  const auto run = [](bool checkpointed) {
    const Mlp first(device()), second(device(), 50);
    const auto x = leaf(numbers({kRows, kHidden}, 5), device());
    const auto outer = [=](const at::Tensor& in) {
      return second(checkpointed ? recomputed(first, in) : first(in));
    };
    const auto loss = (checkpointed ? checkpoint(outer, x) : outer(x)).sum();
    loss.backward({}, /*retain_graph=*/true);
    loss.backward();
    return on_cpu({x.grad(), first.w1.grad(), second.w2.grad()});
  };
  for (int i = 0; i < 20; ++i) {
    schedule(i);
    expect_equal(run(true), run(false));
  }
}

// Each schedule: layers, dropout or not, streams and packed inputs as its number says.
TEST_F(OnTheDevice, AThousandSchedules) {
  const auto run = [](std::uint64_t number, bool checkpointed) {
    std::mt19937_64 choose(number);
    testdev::default_generator(0).unsafeGetGeneratorImpl()->set_current_seed(number);
    const auto forwards = stream_if(choose() % 2 != 0 && checkpointed);
    const auto backwards = choose() % 2 != 0 && checkpointed ? testdev::new_stream(0) : forwards;
    const bool dropout = choose() % 2 != 0, to_host = choose() % 2 != 0;
    CheckpointOptions options;
    if (choose() % 4 == 0) {
      options.pack_inputs = [](const Tensors& in) { return Tensors{in[0].to(at::kCPU)}; };
      options.unpack_inputs = [](const Tensors& held) { return Tensors{held[0].to(device())}; };
    }
    const Mlp first(device()), second(device(), 50);
    const auto x = leaf(numbers({kRows, kHidden}, number), device());
    order(testdev::current_stream(0), forwards);
    at::Tensor loss;
    {
      const c10::StreamGuard guard(forwards);
      at::Tensor h = x;
      for (const auto* mlp : {&first, &second}) {
        const auto forward = [mlp = *mlp, dropout](const at::Tensor& in) {
          auto a = at::gelu(mlp.fc1(in));
          if (dropout) a = at::dropout(a, 0.5, true);
          return mlp.fc2(a);
        };
        h = h +
            (checkpointed
                 ? checkpoint([forward](const Tensors& in) -> Tensors { return {forward(in[0])}; },
                              Tensors{h}, options)[0]
                 : forward(h));
      }
      const auto last = [second](const at::Tensor& in) {
        return ToHost::apply(at::gelu(second.fc1(in)));
      };
      loss = !to_host ? h.sum() : checkpointed ? checkpoint(last, h) : last(h);
    }
    const c10::StreamGuard guard(backwards);
    order(forwards, backwards);
    seen = x;
    loss.backward();
    return on_cpu(
        {x.grad(), seen, first.w1.grad(), first.b2.grad(), second.w1.grad(), second.w2.grad()});
  };
  const char* given = std::getenv("RECOUP_SCHEDULES");
  const int schedules = given != nullptr ? std::atoi(given) : 1000;
  for (int i = 0; i < schedules; ++i) {
    schedule(i);
    const auto number = base_seed() + i;
    const auto wanted = run(number, false), got = run(number, true);
    for (std::size_t t = 0; t < wanted.size(); ++t) {
      ASSERT_TRUE(at::equal(wanted[t], got[t])) << "schedule " << i << ", tensor " << t;
    }
  }
}

}  // namespace
}  // namespace recoup
