"""What the stages in Python share: a decoder with random weights, and how a step of it is measured."""
import contextlib
import functools
import statistics
import time

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), or with `gated` fc2(silu(gate(x)) * fc1(x)); dropout before fc2."""

    def __init__(self, hidden, ffn, gated=False, dropout=0.0):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(hidden, ffn, bias=False), nn.Linear(ffn, hidden, bias=False)
        self.gate = nn.Linear(hidden, ffn, bias=False) if gated else None
        self.dropout = dropout

    def activation(self, x):
        """What a recompute runs again."""
        y = self.fc1(x)
        y = functional.gelu(y) if self.gate is None else functional.silu(self.gate(x)) * y
        return functional.dropout(y, self.dropout, self.training) if self.dropout else y

    def forward(self, x):
        return self.fc2(self.activation(x))


class Layer(nn.Module):
    def __init__(self, hidden, ffn, heads, gated):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.attention, self.mlp = Attention(hidden, heads), MLP(hidden, ffn, gated)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Llama's shape without rotary embeddings. `forward(tokens)` is the mean loss of the next token."""

    def __init__(self, layers, hidden, ffn, heads, vocabulary=256, gated=False):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(hidden, ffn, heads, gated) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(hidden), nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens[:, :-1])
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


@contextlib.contextmanager
def torchs_own(mlps):
    """These MLPs under torch.utils.checkpoint, without early stop's difference: whole MLPs run again."""
    for mlp in mlps:
        mlp.forward = functools.partial(checkpoint, type(mlp).forward.__get__(mlp), use_reentrant=False)
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward


def fingerprint(model):
    """A number that differs where a gradient differs by a bit (of float32 or bfloat16)."""
    sums = []
    for p in model.parameters():
        bits = p.grad.detach().contiguous().view(torch.int32 if p.grad.element_size() == 4 else torch.int16)
        sums.append((bits.sum(dtype=torch.int64).item(), bits.flatten()[::7].sum(dtype=torch.int64).item()))
    return hash(tuple(sums))


def step(model, *arguments, dtype=None, device="cpu"):
    """One forward and backward; (loss, seconds)."""
    for p in model.parameters():
        p.grad = None
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    with torch.autocast(device, dtype) if dtype else contextlib.nullcontext():
        loss = model(*arguments)
        loss = loss if torch.is_tensor(loss) else loss.loss
    loss.backward()
    wait()
    return loss.item(), time.perf_counter() - start


def compare(settings, model, *arguments, rounds, device, dtype=None):
    """Rows of the settings, {name: context manager's factory}, the first without recompute.

    Each round runs each setting twice and takes the second. Losses and gradients are the first
    setting's to the bit or not; seconds are medians with the least and most; bytes are the peak of the
    device's allocator above the weights (None on a CPU)."""
    seconds = {name: [] for name in settings}
    rows = {}
    for turn in range(rounds):
        for name, enter in settings.items():
            with enter():
                torch.manual_seed(1)
                step(model, *arguments, dtype=dtype, device=device)
                for p in model.parameters():
                    p.grad = None
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                torch.manual_seed(1)
                loss, took = step(model, *arguments, dtype=dtype, device=device)
            seconds[name].append(took)
            if turn == 0:
                rows[name] = {"setting": name, "loss": loss, "gradients": fingerprint(model),
                              "peak_bytes": torch.cuda.max_memory_allocated() - before if device == "cuda" else None}
    first = next(iter(rows.values()))
    for name, row in rows.items():
        row["equal"] = row["loss"] == first["loss"] and row["gradients"] == first["gradients"]
        ratios = [a / b for a, b in zip(seconds[name], seconds[first["setting"]])]
        row.update(seconds=statistics.median(seconds[name]), step_time=statistics.median(ratios), least=min(ratios),
                   most=max(ratios))
    for row in rows.values():
        print(f"{row['setting']:28} loss {row['loss']:.6f}  equal {'yes' if row['equal'] else 'no':3} "
              f"peak {row['peak_bytes'] if row['peak_bytes'] is not None else '-':>14}  {row['seconds'] * 1e3:9.2f} ms  "
              f"x{row['step_time']:.3f} ({row['least']:.3f}-{row['most']:.3f})", flush=True)
    return list(rows.values())


def deterministic():
    """Before CUDA is used: kernels that give the same bits in each run."""
    import os
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
