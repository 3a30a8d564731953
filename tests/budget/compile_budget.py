"""recoup's memory budget beside torch.compile's activation_memory_budget, on the CPU.

    python tests/budget/compile_budget.py

torch.compile's is a ratio from 0 to 1 of the saved activations, fixed when the graph is compiled;
its real peak need not fall with it. recoup's is bytes, and the peak must not rise above them. Both
get a model of 4 layers of 128, 4 x 64 tokens: torch.compile a module of the same operators with
AOTAutograd's partitioner (backend aot_eager_decomp_partition), recoup the example trainer. The two
models are not the same to the last operator (loss and head), so peaks are compared with each one's
own plain run. Fails where recoup's peak is above its budget or not monotonic.
"""
import sys
import tempfile
import time

import torch
from torch import nn

import closed_loop

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.2, 0.1, 0.05, 0.0)
LAYERS, HIDDEN, FFN, CONTEXT, BATCH = 4, 128, 512, 64, 4


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.fc1, self.fc2 = nn.Linear(HIDDEN, FFN), nn.Linear(FFN, HIDDEN)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).view(BATCH, CONTEXT, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        later = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
        context = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        x = x + self.out(context.transpose(1, 2).reshape(BATCH, CONTEXT, -1))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(256, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 256, bias=False)

    def forward(self, tokens, targets):
        x = self.token(tokens)
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def peak_of_step(model, tokens, targets):
    """Bytes that a forward and its backward have allocated at most beyond what was there."""
    model.zero_grad()
    with torch.profiler.profile(profile_memory=True) as profile:
        model(tokens, targets).backward()
    bytes_now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            bytes_now += event.nbytes()
            peak = max(peak, bytes_now)
    return peak


def of_torch_compile():
    tokens, targets = torch.randint(256, (2, BATCH, CONTEXT))
    torch.manual_seed(0)
    plain = peak_of_step(Model(), tokens, targets)
    rows = []
    for ratio in RATIOS:
        torch._dynamo.reset()
        torch._functorch.config.activation_memory_budget = ratio
        torch.manual_seed(0)
        model = torch.compile(Model(), backend="aot_eager_decomp_partition")
        start = time.monotonic()
        model(tokens, targets).backward()
        seconds = time.monotonic() - start
        rows.append((ratio, peak_of_step(model, tokens, targets), seconds))
    return plain, rows


def of_recoup():
    flags = [str(f) for f in ("--layers", LAYERS, "--hidden", HIDDEN, "--ffn", FFN, "--heads", 2, "--context", CONTEXT,
                              "--batch", BATCH, "--dropout", 0, "--device", "cpu")]
    case = closed_loop.Case(flags, LAYERS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text = closed_loop.write_text(folder)
        fixed = closed_loop.Fixed(case, text)
        plain, full = (closed_loop.steady(fixed.of(n)[0]) for n in (0, LAYERS))
        for k in range(10, -1, -1):
            budget = full + (plain - full) * k // 10
            [(report, _)], _ = closed_loop.train(case, text, "--memory-budget", str(budget))
            seconds = report["step_seconds"]
            # What planning costs beside a step: the measured one's and the choice's time.
            rows.append((budget, closed_loop.steady(report), seconds[2] - min(seconds[3:])))
    return plain, rows


def main():
    plain, rows = of_torch_compile()
    print(f"torch.compile: eager peak {plain:,} bytes")
    print("| ratio | peak | of eager's | set-up s |\n|---|---|---|---|")
    for ratio, peak, seconds in rows:
        print(f"| {ratio:.2f} | {peak:,} | {peak / plain:.2f} | {seconds:.1f} |")
    peaks = [peak for _, peak, _ in rows]
    print(f"monotonic: {peaks == sorted(peaks, reverse=True)}; least at {rows[peaks.index(min(peaks))][0]}")
    plain, rows = of_recoup()
    print(f"\nrecoup: plain peak {plain:,} bytes (of a whole step, weights and optimizer included)")
    print("| budget | peak | of plain's | set-up s |\n|---|---|---|---|")
    for budget, peak, seconds in rows:
        print(f"| {budget:,} | {peak:,} | {peak / plain:.2f} | {max(seconds, 0):.3f} |")
    peaks = [peak for _, peak, _ in rows]
    monotonic = peaks == sorted(peaks, reverse=True)
    print(f"monotonic: {monotonic}; never above: {all(peak <= budget for budget, peak, _ in rows)}")
    return 0 if monotonic and all(peak <= budget for budget, peak, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
