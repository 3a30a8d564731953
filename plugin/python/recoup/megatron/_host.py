"""What this Megatron can recompute, asked from Megatron itself."""
import ast
import functools
import inspect
import sys
import textwrap

from ..policy import known_modules

_CONFIG = "megatron.core.transformer.transformer_config"


@functools.lru_cache(maxsize=None)
def modules() -> tuple:
    """The modules that TransformerConfig's own check allows in recompute_modules."""
    config = sys.modules[_CONFIG].TransformerConfig
    check = inspect.unwrap(config.__post_init__)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(check)))
    except (OSError, SyntaxError):  # no sources here
        return tuple(known_modules())
    for block in ast.walk(tree):
        body = getattr(block, "body", None)
        for first, second in zip(body, body[1:]) if isinstance(body, list) else ():
            if (isinstance(first, ast.Assign) and isinstance(first.value, ast.Set)
                    and "recompute_modules" in ast.dump(second)):
                return tuple(element.value for element in first.value.elts)
    return tuple(known_modules())


# Modules that Megatron recomputes by whole blocks of layers: no layer is asked.
NOT_BY_LAYER = ("mhc",)


def limitable() -> tuple:
    """Those of them for which recoup's policy can say which layers."""
    known = known_modules()
    return tuple(name for name in modules() if name in known and name not in NOT_BY_LAYER)
