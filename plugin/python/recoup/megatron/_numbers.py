"""How layers and MLPs are counted: over the model, the pipeline stage, a hybrid model's pattern."""
import contextlib
import contextvars
import inspect
import sys
from dataclasses import dataclass
from typing import Optional

from . import _log, _plan

_MLP = "-"  # the symbol of a layer that is an MLP, in a hybrid model's pattern
_pattern = contextvars.ContextVar("recoup_pattern", default=None)


@dataclass(frozen=True)
class Counts:
    """What is known of a model and a stage."""

    dense: Optional[tuple]  # for each layer, whether its MLP is a dense one; None: unknown
    stage_num_layers: int = 0  # 0: unknown

    @property
    def num_mlps(self) -> Optional[int]:
        return None if self.dense is None else sum(self.dense)

    def mlp_number(self, number: int) -> Optional[int]:
        """A layer's number among the dense MLPs; 0: it has none; None: unknown."""
        if self.dense is None or not 0 < number <= len(self.dense):
            return None
        return sum(self.dense[:number]) if self.dense[number - 1] else 0


def counts(config, keywords) -> Counts:
    pattern = _pattern.get()
    if pattern is not None:
        dense = tuple(symbol == _MLP for symbol in pattern) or None
    else:
        dense = dense_layers(config)
    return Counts(dense, _stage_num_layers(config, keywords))


def dense_layers(config) -> Optional[tuple]:
    """For each layer of a GPT model, whether its MLP is a dense one; None where a pattern says it."""
    if getattr(config, "is_hybrid_model", False):
        return None
    frequency = getattr(config, "moe_layer_freq", 1)
    if not getattr(config, "num_moe_experts", None):
        return (True,) * config.num_layers
    if isinstance(frequency, int):
        return tuple(i % frequency != 0 for i in range(config.num_layers))
    return tuple(not moe for moe in frequency)


def _pp_rank(keywords):
    group = getattr(keywords.get("pg_collection"), "pp", None)
    return None if group is None else group.rank()


def _call(function, config, keywords):
    known = inspect.signature(function).parameters
    more = {"vp_stage": keywords.get("vp_stage"), "pp_rank": _pp_rank(keywords)}
    return function(config, **{name: value for name, value in more.items() if name in known})


def stage_offset(config, keywords) -> int:
    """Layers before this pipeline stage's first one, as Megatron counts them."""
    layer = sys.modules["megatron.core.transformer.transformer_layer"]
    try:
        return _call(layer.get_transformer_layer_offset, config, keywords)
    except AssertionError:  # no groups: one stage
        return 0


def _stage_num_layers(config, keywords) -> int:
    block = sys.modules.get("megatron.core.transformer.transformer_block")
    try:
        return _call(block.get_num_layers_to_build, config, keywords) if block else 0
    except (AssertionError, AttributeError):
        return 0


def symbols(pattern: str) -> str:
    """A pattern's layers: without the pipeline's separators, and without what follows for MTP."""
    return pattern.split("/")[0].replace("|", "")


@contextlib.contextmanager
def hybrid_model(arguments):
    """While a hybrid model is built, its whole pattern is known: a stack knows only its own part."""
    given = arguments.get("hybrid_layer_pattern") or arguments.get("hybrid_override_pattern")
    with _known(symbols(given) if given else None, arguments.get("config")):
        yield


@contextlib.contextmanager
def hybrid_stack(arguments):
    """A stack that no model builds: it is the whole model where it has all layers."""
    own, config = arguments.get("layer_type_list"), arguments.get("config")
    if _pattern.get() is not None or not own:
        yield
        return
    whole = len(own) == getattr(config, "num_layers", None)
    with _known("".join(own) if whole else "", config):
        yield


@contextlib.contextmanager
def _known(pattern, config):
    token = _pattern.set(pattern)
    try:
        if pattern:
            _warn_of_plain_numbers(pattern, config)
        yield
    finally:
        _pattern.reset(token)


def _warn_of_plain_numbers(pattern, config) -> None:
    """The same N recomputes fewer MLPs here than in a GPT model: it counts every symbol."""
    if config is None or not _plan.decides(config) or "mlp" not in (config.recompute_modules or ()):
        return
    total = pattern.count(_MLP)
    try:
        chosen = [n for n in range(1, len(pattern) + 1) if "mlp" in _plan.of_layer(config, n)]
    except ValueError:  # scope mlp, which needs more than a layer's number
        return
    mlps = sum(pattern[n - 1] == _MLP for n in chosen)
    if mlps < len(chosen) < len(pattern):
        _log.once(f"{len(chosen)} of the {len(pattern)} layers of this hybrid model are to recompute their "
                  f"MLP, and hold {mlps} of its {total} MLPs; recompute_layer_scope: mlp counts MLPs",
                  _log.logging.WARNING)
