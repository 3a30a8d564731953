"""What one call costs where its arithmetic is nothing: microseconds of the host, and of the device between events."""
import functools
import statistics
import time


def run(context):
    torch = context.torch()
    import models
    import recoup
    from torch.utils.checkpoint import checkpoint
    device, steps, rounds = context.device, 50 if context.dry else 400, 3 if context.dry else 7
    if device == "cpu":
        torch.set_num_threads(1)
    with torch.device(device):
        mlp = models.MLP(16, 64)
        x = torch.randn(8, 16, requires_grad=True)
    calls = {"none": functools.partial(mlp, x), "recoup.checkpoint": functools.partial(recoup.checkpoint, mlp, x),
             "torch.utils.checkpoint": functools.partial(checkpoint, mlp, x, use_reentrant=False)}
    measured = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            if device == "cuda":
                first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                torch.cuda.synchronize()
                first.record()
            start = time.perf_counter()
            for _ in range(steps):
                call().sum().backward()
            host = (time.perf_counter() - start) / steps * 1e6  # launches alone: nothing is waited for
            on_device = None
            if device == "cuda":
                last.record()
                torch.cuda.synchronize()
                on_device = first.elapsed_time(last) / steps * 1e3
            if turn:  # the first round warms up
                measured[name].append((host, on_device))
    rows = []
    for name, values in measured.items():
        host = statistics.median(v[0] for v in values)
        span = statistics.median(v[1] for v in values) if values[0][1] is not None else None
        rows.append({"call": name, "host_us": host, "device_us": span})
    for row in rows:
        row["host_extra_us"] = row["host_us"] - rows[0]["host_us"]
        row["device_extra_us"] = row["device_us"] - rows[0]["device_us"] if row["device_us"] is not None else None
        print("  ".join(f"{key} {value if isinstance(value, str) else '-' if value is None else format(value, '.1f')}"
                        for key, value in row.items()))
    return {"rows": rows}
