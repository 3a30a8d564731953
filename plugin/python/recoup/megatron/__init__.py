"""Per-layer recompute for Megatron-LM, with no change to Megatron's files.

    torchrun ... -m recoup.megatron pretrain_gpt.py --recompute-granularity selective \\
        --recompute-modules mlp --recompute-mlp-num-layers 12 ...

or `import recoup.megatron` as the script's first line. Either waits for Megatron to be imported, and then
adds recoup's options to TransformerConfig and to Megatron's command line, and lets each layer recompute
what was said for it. Importing this needs neither torch nor Megatron.
"""
from ._hook import install

__all__ = ["install", "use_engine"]

install()


def use_engine():
    """Runs the checkpoints of MLPs with recoup's engine from now on, as RECOUP_ENGINE=recoup does."""
    from ._engine import use_engine as use

    use()
