"""A hybrid model of attention and MLPs alone: HybridModel, or MambaModel before it. After the CPU's stand-ins."""
import inspect
import sys

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

try:
    from megatron.core.models.hybrid.hybrid_block import HybridStack as Stack
    from megatron.core.models.hybrid.hybrid_block import HybridStackSubmodules as Submodules
    from megatron.core.models.hybrid.hybrid_model import HybridModel as Model
except ImportError:
    from megatron.core.models.mamba.mamba_model import MambaModel as Model
    from megatron.core.ssm.mamba_block import MambaStack as Stack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as Submodules

from megatron.core.transformer.torch_norm import WrappedTorchNorm

sys.modules[Stack.__module__].TENorm = WrappedTorchNorm  # no Transformer Engine here

PATTERN = "*-*-*-*-"


def spec():
    gpt = get_gpt_layer_local_spec().submodules
    attention = TransformerLayerSubmodules(
        input_layernorm=gpt.input_layernorm, self_attention=gpt.self_attention,
        self_attn_bda=gpt.self_attn_bda)
    mlp = TransformerLayerSubmodules(pre_mlp_layernorm=gpt.pre_mlp_layernorm, mlp=gpt.mlp,
                                     mlp_bda=gpt.mlp_bda)
    return ModuleSpec(module=Stack, submodules=Submodules(
        attention_layer=ModuleSpec(module=TransformerLayer, submodules=attention),
        mlp_layer=ModuleSpec(module=MLPLayer, submodules=mlp)))


def build(config, **options):
    """A model of PATTERN."""
    known = inspect.signature(Model.__init__).parameters
    named = "hybrid_layer_pattern" if "hybrid_layer_pattern" in known else "hybrid_override_pattern"
    return Model(config, spec(), **{named: PATTERN}, **options)
