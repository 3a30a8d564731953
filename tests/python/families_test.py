"""recoup.apply on families of Hugging Face transformers, with random weights."""
import copy

import pytest
import torch
import transformers

import recoup
from small_model import bytes_kept, gradients, same

COMMON = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
              num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
HEAD = dict(head_dim=16)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
              n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16)

# name: (options of its config, layers with experts)
FAMILIES = {
    "Llama": (COMMON, ()),
    "Qwen2": (COMMON, ()),
    "Qwen3": ({**COMMON, **HEAD}, ()),
    "Mistral": (COMMON, ()),
    "Gemma": ({**COMMON, **HEAD}, ()),
    "Gemma2": ({**COMMON, **HEAD}, ()),
    "Phi": (COMMON, ()),
    "Phi3": (COMMON, ()),
    "GPT2": (dict(vocab_size=64, n_embd=32, n_layer=4, n_head=2, n_positions=64, bos_token_id=1,
                  eos_token_id=2), ()),
    "Mixtral": ({**COMMON, "num_local_experts": 4}, (1, 2, 3, 4)),
    "Qwen3Moe": ({**COMMON, **MOE, "decoder_sparse_step": 2}, (2, 4)),
    "DeepseekV3": ({**COMMON, **LATENT, "first_k_dense_replace": 2}, (3, 4)),
}
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])


def build(family, **options):
    torch.manual_seed(0)
    config = getattr(transformers, family + "Config")(**{**FAMILIES[family][0], **options})
    return transformers.AutoModelForCausalLM.from_config(config).train()


class WithLabels(torch.nn.Module):
    """The model's loss on its own input, with dropout at the same numbers each time."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        torch.manual_seed(1)
        return self.model(tokens, labels=tokens, use_cache=False).loss


def step(model):
    return gradients(WithLabels(model), TOKENS)


def freed_by(mlp):
    """Bytes of what an MLP's forward saves, by itself, beside its input, its output and its weights."""
    own = {t.untyped_storage().data_ptr() for t in mlp.parameters()}
    x, saved = torch.randn(*TOKENS.shape, 32, requires_grad=True), {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = mlp(x)
    for t in (x, out):
        saved.pop(t.untyped_storage().data_ptr(), None)
    return sum(size for storage, size in saved.items() if storage not in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_bytes(family):
    model, moe = build(family), FAMILIES[family][1]
    expected, plain = step(model), bytes_kept(WithLabels(model), TOKENS)
    mlps = [m for name, m in model.named_modules() if name.endswith(".mlp")]
    assert len(mlps) == 4
    computed = sum(freed_by(mlp) for number, mlp in enumerate(mlps, 1) if number <= 3 and number not in moe)

    table = recoup.apply(model, mlp_num_layers=3)
    assert [row.recomputed for row in table] == [n <= 3 and n not in moe for n in (1, 2, 3, 4)]
    assert [row.note for row in table if row.layer in moe] == ["experts: left alone"] * len(moe)
    assert same(step(model), expected)
    freed = plain - bytes_kept(WithLabels(model), TOKENS)
    assert computed > 0 or len(moe) == 4
    # Dropout after the last GEMM saves its mask inside the region: recomputed, and counted, as the rest.
    assert freed == computed
    recoup.remove(model)
    assert same(step(model), expected)


@pytest.mark.parametrize("family", [name for name, (_, moe) in FAMILIES.items() if not moe])
def test_level_activation(family):
    model = build(family)
    expected, plain = step(model), bytes_kept(WithLabels(model), TOKENS)
    recoup.apply(model, mlp_num_layers=4)
    full = plain - bytes_kept(WithLabels(model), TOKENS)
    recoup.remove(model)
    table = recoup.apply(model, mlp_num_layers=3, mlp_level="activation")
    assert [row.note for row in table] == ["recomputed from fc1's output on"] * 3 + ["kept"]
    assert same(step(model), expected)
    assert 0 < plain - bytes_kept(WithLabels(model), TOKENS) < full
    recoup.remove(model)
    assert same(step(model), expected)


class TestWithTransformers:
    def test_gradient_checkpointing_before(self):
        model = build("Llama")
        model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match=r"gradient_checkpointing_enable\(\).*nested=True"):
            recoup.apply(model, mlp_num_layers=2)

    @pytest.mark.parametrize("family", ["Llama", "GPT2"])
    def test_gradient_checkpointing_after(self, family):
        model = build(family)
        recoup.apply(model, mlp_num_layers=2)
        model.gradient_checkpointing_enable()
        with pytest.raises(RuntimeError, match=r"layer 1 mlp: gradient_checkpointing_enable\(\) was called"):
            step(model)
        model.gradient_checkpointing_disable()
        step(model)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_nested(self, reentrant):
        model = build("Llama")
        expected = step(model)
        recoup.apply(model, mlp_num_layers=2, nested=True)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        assert same(step(model), expected)

    def test_recoup_as_their_checkpoint(self):
        """Their gradient checkpointing, of whole layers, on recoup's engine."""
        model = build("Llama")
        expected = step(model)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        import functools

        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = functools.partial(
                    recoup.checkpoint, use_reentrant=False, preserve_rng_state=True)
        assert same(step(model), expected)

    def test_copies_and_saving(self, tmp_path):
        model = build("Llama")
        recoup.apply(model, mlp_num_layers=4)
        average = copy.deepcopy(model)
        assert same(step(average), step(model))
        model.save_pretrained(tmp_path)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
        assert same(step(again), step(model))

    def test_generate(self):
        model = build("Llama").eval()
        expected = model.generate(TOKENS, max_new_tokens=4, do_sample=False)
        recoup.apply(model, mlp_num_layers=4)
        assert torch.equal(model.generate(TOKENS, max_new_tokens=4, do_sample=False), expected)

    def test_autocast(self):
        def cast():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return step(model)

        model = build("Qwen3")
        expected = cast()
        recoup.apply(model, mlp_num_layers=4)
        assert same(cast(), expected)

    def test_no_layers(self):
        config = transformers.OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2,
                                        num_attention_heads=2, word_embed_proj_dim=32)
        model = transformers.OPTForCausalLM(config)
        with pytest.raises(ValueError, match="found no decoder layers in OPTForCausalLM.*layers="):
            recoup.apply(model, mlp_num_layers=1)


@pytest.mark.parametrize("before", [True, False])
def test_peft(before):
    import peft

    def lora(model):
        torch.manual_seed(2)
        return peft.get_peft_model(model, peft.LoraConfig(
            r=4, target_modules=["gate_proj", "up_proj", "down_proj"], lora_dropout=0.1))

    expected = step(lora(build("Llama")))
    model = build("Llama")
    if before:
        recoup.apply(model, mlp_num_layers=4)
    model = lora(model)
    if not before:
        recoup.apply(model, mlp_num_layers=4)
    assert same(step(model), expected) and any(g is not None for g in expected[1:])
    merged = model.merge_and_unload()
    assert recoup.remove(merged) == 4
