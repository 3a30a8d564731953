"""What one layer of Hugging Face's own implementations saves for backward, and what recoup's tables say of it."""
import collections
import json

import torch
import transformers

PART = {"shared": "moe"}  # their input is the router's too; who saves it first is not the point
EXPERTS = {"grouped": "grouped_mm", "loop": "eager", "batched": "batched_mm"}


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, scale):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale,
                                                               enable_gqa=True)
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_zeros(query.shape[:-1], dtype=torch.float32))
        return out


def fused(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    return Fused.apply(query, key, value, scaling).transpose(1, 2), None


transformers.AttentionInterface.register("recoup_fused", fused)


def saved_by_part(family, numbers, tokens, attention, experts="grouped", device="cpu"):
    """Bytes of the storages that the forward of a model's last layer saves, parameters left out, by part.

    `attention`: eager, recoup_fused or sdpa; `experts` as recoup's model files call them."""
    module = getattr(transformers.models, {"DeepseekV3": "deepseek_v3"}.get(family, family.lower()))
    modeling = next(getattr(module, name) for name in dir(module) if name.startswith("modeling"))
    config = getattr(transformers, f"{family}Config")(**numbers)
    config._attn_implementation = attention
    config._experts_implementation = EXPERTS[experts]
    torch.manual_seed(0)
    layer = getattr(modeling, f"{family}DecoderLayer")(config, config.num_hidden_layers - 1).to(device, torch.bfloat16).train()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16, device=device, requires_grad=True)
    positions = torch.arange(tokens, device=device)[None]
    rotary = getattr(modeling, f"{family}RotaryEmbedding")(config).to(device)(x, positions)
    mask = torch.full((1, 1, tokens, tokens), float("-inf"), dtype=torch.bfloat16, device=device).triu(1) if attention == "eager" else None
    parts = {layer.self_attn: "attention", layer.mlp: "moe" if hasattr(layer.mlp, "experts") else "mlp",
             layer.input_layernorm: "norm", layer.post_attention_layernorm: "norm"}
    stack, seen, kept, found = ["layer"], set(), [], collections.Counter()
    for part_of, name in parts.items():
        part_of.register_forward_pre_hook(lambda *_, name=name: stack.append(name))
        part_of.register_forward_hook(lambda *_: stack.pop() and None)
    seen.update(t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers()))

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(tensor)  # so that no address comes again
            found[stack[-1]] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x, attention_mask=mask, position_ids=positions,
              position_embeddings=rotary)
    return found


def planned_by_part(estimate):
    """The same of the last kind of layer in what `recoup estimate --layers --json` printed."""
    found = collections.Counter()
    for tensor in json.loads(estimate)["layers"][-1]["tensors"]:
        found[PART.get(tensor["part"], tensor["part"])] += tensor["bytes"]
    return found
