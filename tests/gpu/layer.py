"""The layer of Llama-3 8B in bf16 with flash attention: bytes that `recoup estimate` predicts beside measured ones."""
import json
import os
import subprocess
import sys

from run import ROOT, Skip, check

LLAMA = dict(num_hidden_layers=1, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
             intermediate_size=14336, vocab_size=64, hidden_act="silu", max_position_embeddings=8192)
SMALL = dict(LLAMA, hidden_size=256, num_attention_heads=8, num_key_value_heads=2, intermediate_size=896)


def run(context):
    program = context.program("recoup")
    sys.path.insert(0, os.path.join(ROOT, "tests", "models"))
    try:
        import torch
        import saved_layers
    except ImportError as missing:
        raise Skip(f"{missing}: the layer is transformers' own") from None
    from torch.nn.attention import SDPBackend, sdpa_kernel
    numbers = SMALL if context.dry else LLAMA
    path = os.path.join(context.output, "llama.json")
    with open(path, "w") as file:
        json.dump({**numbers, "model_type": "llama", "torch_dtype": "bfloat16"}, file)
    rows = []
    for tokens in (64, 256) if context.dry else (2048, 8192):
        done = subprocess.run([program, "estimate", "--layers", "--json", "--model", path, "--sequence", str(tokens)],
                              capture_output=True, text=True)
        check(done.returncode == 0, done.stderr)
        predicted = saved_layers.planned_by_part(done.stdout)
        if context.dry:
            measured = saved_layers.saved_by_part("Llama", numbers, tokens, "recoup_fused")
        else:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                measured = saved_layers.saved_by_part("Llama", numbers, tokens, "sdpa", device="cuda")
            torch.cuda.synchronize()
        for part in sorted(measured | predicted):
            print(f"{tokens} tokens, {part}: predicted {predicted[part]:,}, measured {measured[part]:,}", flush=True)
        rows.append({"tokens": tokens, "predicted": dict(predicted), "measured": dict(measured)})
    for row in rows:
        p, m = sum(row["predicted"].values()), sum(row["measured"].values())
        check(abs(p - m) <= 0.01 * m, f"{row['tokens']} tokens: predicted {p:,}, measured {m:,}: more than 1 % apart")
    return {"model": "Llama-3 8B's layer" if not context.dry else "a small Llama's layer", "rows": rows}
