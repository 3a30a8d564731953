"""What a layer saves by the tables, beside what autograd really saves in Hugging Face's own implementation, by part:
real tensors, bf16, three reduced sizes of each family, for each implementation of attention and experts.

PyTorch has no fused kernel for latent attention on the CPU, so "flash" stands for a function that saves what fused
kernels save: query, key, value and result as they are given, and the log-sum-exp.
"""
import collections
import json
import os

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from conftest import BUILD  # noqa: E402,F401

DEEPSEEK = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=64,
                intermediate_size=512, moe_intermediate_size=96, n_routed_experts=8, num_experts_per_tok=2,
                n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32,
                qk_rope_head_dim=16, v_head_dim=32, n_group=1, topk_group=1, max_position_embeddings=1024,
                hidden_act="silu")
MIXTRAL = dict(hidden_size=256, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2, vocab_size=64,
               intermediate_size=448, num_local_experts=8, num_experts_per_tok=2, hidden_act="silu",
               max_position_embeddings=1024)
LLAMA = dict(hidden_size=256, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2, vocab_size=64,
             intermediate_size=704, hidden_act="silu", max_position_embeddings=1024)
SHAPES = {
    "deepseek": ("DeepseekV3", DEEPSEEK),
    "deepseek without a query rank": ("DeepseekV3", dict(
        DEEPSEEK, hidden_size=512, num_attention_heads=8, num_key_value_heads=8, q_lora_rank=None, kv_lora_rank=128,
        moe_intermediate_size=128, n_routed_experts=16, num_experts_per_tok=4, v_head_dim=64)),
    "deepseek of 32 experts": ("DeepseekV3", dict(
        DEEPSEEK, hidden_size=448, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=192,
        qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, n_shared_experts=2, n_routed_experts=32,
        num_experts_per_tok=8, n_group=4, topk_group=2)),
    "deepseek's dense layer": ("DeepseekV3", dict(DEEPSEEK, first_k_dense_replace=2)),
    "mixtral": ("Mixtral", MIXTRAL),
    "mixtral, one expert a token": ("Mixtral", dict(MIXTRAL, num_experts_per_tok=1, num_local_experts=4)),
    "mixtral, wide": ("Mixtral", dict(MIXTRAL, hidden_size=384, num_attention_heads=12, num_key_value_heads=12,
                                      intermediate_size=640)),
    "llama": ("Llama", LLAMA),
    "llama, all heads": ("Llama", dict(LLAMA, num_key_value_heads=8)),
    "llama, one key": ("Llama", dict(LLAMA, num_key_value_heads=1, intermediate_size=512)),
}
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


def measured(family, numbers, tokens, attention, experts):
    """Bytes of the storages that the last layer's forward saves, parameters left out, by part."""
    module = getattr(transformers.models, {"DeepseekV3": "deepseek_v3"}.get(family, family.lower()))
    modeling = next(getattr(module, name) for name in dir(module) if name.startswith("modeling"))
    config = getattr(transformers, f"{family}Config")(**numbers)
    config._attn_implementation = "recoup_fused" if attention == "flash" else "eager"
    config._experts_implementation = EXPERTS[experts]
    torch.manual_seed(0)
    layer = getattr(modeling, f"{family}DecoderLayer")(config, config.num_hidden_layers - 1).to(torch.bfloat16).train()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    positions = torch.arange(tokens)[None]
    rotary = getattr(modeling, f"{family}RotaryEmbedding")(config)(x, positions)
    mask = torch.full((1, 1, tokens, tokens), float("-inf"), dtype=torch.bfloat16).triu(1)
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
        layer(x, attention_mask=mask if attention == "eager" else None, position_ids=positions,
              position_embeddings=rotary)
    return found


def planned(recoup, path, tokens, attention, experts):
    """The same by the tables: what `estimate --layers` says of the last kind of layer."""
    done = recoup("estimate", "--layers", "--json", "--model", path, "--sequence", tokens, "--attention", attention,
                  "--experts", experts)
    assert done.returncode == 0, done.stderr
    found = collections.Counter()
    for tensor in json.loads(done.stdout)["layers"][-1]["tensors"]:
        found[PART.get(tensor["part"], tensor["part"])] += tensor["bytes"]
    return found


ALL = os.environ.get("RECOUP_ALL_LAYERS") == "1"  # tests/all.sh layers
CASES = [(name, attention, experts) for name, (family, _) in SHAPES.items() for attention in ("flash", "eager")
         for experts in (EXPERTS if (family != "Llama" and attention == "flash" and "dense" not in name) else ["grouped"])
         if ALL or name == "deepseek" or (name == "llama" and attention == "eager")]


@pytest.mark.parametrize("name, attention, experts", CASES)
def test_a_layer_saves_what_its_tables_say(recoup, tmp_path, name, attention, experts):
    family, numbers = SHAPES[name]
    path = tmp_path / "config.json"
    kind = {"DeepseekV3": "deepseek_v3"}.get(family, family.lower())
    path.write_text(json.dumps({**numbers, "model_type": kind, "torch_dtype": "bfloat16"}))
    for tokens in (64, 256) if ALL else (64,):
        real = measured(family, numbers, tokens, attention, experts)
        plan = planned(recoup, path, tokens, attention, experts)
        assert set(real) == set(plan)
        for part in real:
            assert abs(plan[part] - real[part]) <= 0.01 * real[part], (part, tokens, plan[part], real[part])
        assert abs(sum(plan.values()) - sum(real.values())) <= 0.01 * sum(real.values())
