"""recoup.apply on a Llama with random weights, beside the model's own gradient checkpointing."""
import contextlib

from run import check


def make(context, torch):
    """(model, arguments of its forward, its own gradient checkpointing, what it is)."""
    import models
    sizes = dict(layers=2, hidden=64, ffn=128, heads=4, vocabulary=512) if context.dry else dict(
        layers=16, hidden=2048, ffn=8192, heads=32, vocabulary=32000)
    rows, length = (2, 16) if context.dry else (2, 1024)
    with torch.device(context.device):
        tokens = torch.randint(sizes["vocabulary"], (rows, length + 1))
        try:
            from transformers import LlamaConfig, LlamaForCausalLM
        except ImportError:
            model = models.Decoder(**sizes, gated=True)
            return model, (tokens,), lambda: models.torchs_own([*model.layers]), "a Llama of our own (no transformers)"
        model = LlamaForCausalLM(LlamaConfig(
            num_hidden_layers=sizes["layers"], hidden_size=sizes["hidden"], intermediate_size=sizes["ffn"],
            num_attention_heads=sizes["heads"], num_key_value_heads=sizes["heads"] // 4, vocab_size=sizes["vocabulary"],
            use_cache=False))
    model.train()

    @contextlib.contextmanager
    def own():
        model.gradient_checkpointing_enable()
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()
    forward = model.forward
    model.forward = lambda tokens: forward(input_ids=tokens, labels=tokens)
    return model, (tokens,), own, "transformers' LlamaForCausalLM"


def run(context):
    torch = context.torch()
    import models
    import recoup
    models.deterministic()
    torch.manual_seed(0)
    model, arguments, own, what = make(context, torch)
    if not context.dry:
        model.to(torch.bfloat16)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{what}, {parameters:,} parameters, {arguments[0].numel()} tokens, on {context.device}")

    @contextlib.contextmanager
    def ours(n):
        applied = recoup.apply(model, mlp_num_layers=n)
        check(sum(row.recomputed for row in applied) == n, f"recoup.apply recomputes another number than {n}:\n{applied}")
        try:
            yield
        finally:
            recoup.remove(model)

    layers = len(model.layers if hasattr(model, "layers") else model.model.layers)
    settings = {"none": contextlib.nullcontext, f"recoup.apply, N = {layers // 2}": lambda: ours(layers // 2),
                f"recoup.apply, N = {layers}": lambda: ours(layers), "its own, whole layers": own}
    rows = models.compare(settings, model, *arguments, rounds=2 if context.dry else 5, device=context.device)
    for row in rows[:3]:
        check(row["equal"], f"{row['setting']}: losses or gradients differ from those without recompute")
    return {"model": what, "parameters": parameters, "rows": rows}
