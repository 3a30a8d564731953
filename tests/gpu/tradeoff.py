"""Memory against step time: recoup on none, half and all layers beside torch.utils.checkpoint, in turn."""
import contextlib
import time

from run import check


def sizes(context, free):
    """The largest of these models that fits: layers, hidden, ffn, heads, context, batch."""
    if context.dry:
        return 4, 64, 256, 4, 32, 2
    for hidden, layers in ((4096, 16), (4096, 8), (2048, 16), (2048, 8), (1024, 8)):
        weights = layers * 12 * hidden * hidden
        activations = layers * 4096 * (16 + 4 * 4) * hidden * 2
        if weights * (4 + 4 + 2) + activations < free * 0.85:
            return layers, hidden, 4 * hidden, hidden // 128, 1024, 4
    raise SystemExit(f"FAILED: {free >> 20} MB of GPU memory are free, and the smallest model needs more")


def recompute_seconds(layer, x, dtype, device, torch):
    """fc1 and the activation of one layer by themselves: what a recompute cannot do without."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = []
    with torch.autocast(device, dtype):
        for _ in range(5):
            wait()
            start = time.perf_counter()
            for _ in range(4):
                layer.mlp.activation(x)
            wait()
            best.append((time.perf_counter() - start) / 4)
    return sorted(best)[2]


def run(context):
    torch = context.torch()
    import models
    import recoup
    models.deterministic()
    device = context.device
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else 0
    layers, hidden, ffn, heads, length, batch = sizes(context, free)
    torch.manual_seed(0)
    with torch.device(device):
        model = models.Decoder(layers, hidden, ffn, heads)
        tokens = torch.randint(256, (batch, length + 1))
    print(f"{layers} layers of {hidden}, ffn {ffn}, {batch} x {length} tokens, bf16 autocast, on {device}")

    @contextlib.contextmanager
    def ours(n):
        recoup.apply(model, mlp_num_layers=n)
        try:
            yield
        finally:
            recoup.remove(model)

    half = layers // 2
    settings = {"none": contextlib.nullcontext}
    for n in (half, layers):
        settings[f"recoup, N = {n}"] = lambda n=n: ours(n)
        settings[f"torch.utils.checkpoint, N = {n}"] = lambda n=n: models.torchs_own(
            [layer.mlp for layer in model.layers][:n])
    rows = models.compare(settings, model, tokens, rounds=2 if context.dry else 7, device=device, dtype=torch.bfloat16)
    with torch.device(device):
        x = torch.randn(batch, length, hidden, requires_grad=True)
    bare = recompute_seconds(model.layers[0], x, torch.bfloat16, device, torch)
    for row in rows:
        if n := int(row["setting"].partition("N = ")[2] or 0):
            row["cost_of_recompute"] = (row["seconds"] - rows[0]["seconds"]) / (n * bare)
            print(f"{row['setting']:28} costs {row['cost_of_recompute']:.2f} times what fc1 and the activation take")
    for row in rows:
        if row["setting"].startswith("recoup"):
            check(row["equal"], f"{row['setting']}: losses or gradients differ from those without recompute")
    peaks = [row["peak_bytes"] for row in rows if not row["setting"].startswith("torch")]
    if peaks[0] is not None:
        check(peaks[0] > peaks[1] > peaks[2], f"the peaks of none, half and all do not fall: {peaks}")
    return {"layers": layers, "hidden": hidden, "ffn": ffn, "tokens": batch * length, "recompute_seconds": bare,
            "rows": rows}
