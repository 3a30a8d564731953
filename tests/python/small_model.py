"""A small model with decoder layers, and what the tests measure on it."""
import gc

import torch
from torch import nn


class MLP(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(16, 2), nn.ModuleList(MLP() for _ in range(2))

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        return sum(expert(x) * weights[..., i:i + 1] for i, expert in enumerate(self.experts))


class Layer(nn.Module):
    def __init__(self, moe):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mlp = Experts() if moe else MLP()

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    """[2, 3] tokens to a loss. `experts`: numbers of the layers that have some."""

    def __init__(self, layers, experts=()):
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.layers = nn.ModuleList(Layer(i + 1 in experts) for i in range(layers))

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x.pow(2).mean()


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def gradients(model, *inputs):
    """[loss, gradient of each parameter] of one step."""
    model.zero_grad()
    loss = model(*(inputs or (TOKENS,)))
    loss = loss if isinstance(loss, torch.Tensor) else loss.loss
    loss.backward()
    return [loss.detach()] + [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(a, b):
    return len(a) == len(b) and all(x is y is None or torch.equal(x, y) for x, y in zip(a, b))


def bytes_kept(model, *inputs, **keywords):
    """Bytes of CPU memory that a forward leaves allocated, as the allocator reports them."""
    model(*(inputs or (TOKENS,)), **keywords)  # what the first call alone allocates
    gc.collect()  # garbage of earlier tests is not freed while this counts
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as profile:
        out = model(*(inputs or (TOKENS,)), **keywords)
    kept = sum(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    del out
    return kept
