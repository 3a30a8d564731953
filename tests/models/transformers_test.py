"""What a layer saves by the tables, beside what autograd really saves in Hugging Face's own implementation, by part:
real tensors, bf16, three reduced sizes of each family, for each implementation of attention and experts.

PyTorch has no fused kernel for latent attention on the CPU, so "flash" stands for a function that saves what fused
kernels save: query, key, value and result as they are given, and the log-sum-exp.
"""
import json
import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from saved_layers import EXPERTS, planned_by_part, saved_by_part  # noqa: E402

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
        real = saved_by_part(family, numbers, tokens, "recoup_fused" if attention == "flash" else "eager", experts)
        done = recoup("estimate", "--layers", "--json", "--model", path, "--sequence", tokens,
                      "--attention", attention, "--experts", experts)
        assert done.returncode == 0, done.stderr
        plan = planned_by_part(done.stdout)
        assert set(real) == set(plan)
        for part in real:
            assert abs(plan[part] - real[part]) <= 0.01 * real[part], (part, tokens, plan[part], real[part])
        assert abs(sum(plan.values()) - sum(real.values())) <= 0.01 * sum(real.values())
