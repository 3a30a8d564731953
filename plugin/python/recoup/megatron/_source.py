"""Who says which layers: recoup's own configuration, and the options of the job."""
import functools
import inspect
import json
import os
import re
from dataclasses import dataclass
from typing import FrozenSet, Optional

from ..policy import Policy, RecoupError
from . import _fields, _host, _log

VARIABLE = "RECOUP_RECOMPUTE_MLP_NUM_LAYERS"
_FAR = 1 << 40  # a number that only a set without an end contains


@dataclass(frozen=True)
class Full:
    """Granularity full, as it was written."""

    method: str
    num_layers: int


def _option(field: str) -> str:
    return field and "--" + field.replace("_", "-")


class Source:
    """One configuration, for a model of num_layers layers. ValueError where it is refused."""

    def __init__(self, name: str, num_layers: int, path: Optional[str] = None,
                 yaml: Optional[str] = None, stage_num_layers: int = 0,
                 num_mlps: Optional[int] = None):
        self.name = name
        self.notices = []  # (text, whether a warning)
        self._arguments = dict(config=path, yaml=yaml, num_layers=num_layers,
                               stage_num_layers=stage_num_layers)
        optional = inspect.signature(Policy.__init__).parameters
        if "num_mlps" in optional:
            # Unknown until a hybrid model says its pattern, but no more than layers.
            self._arguments["num_mlps"] = num_layers if num_mlps is None else num_mlps
        if "capabilities" in optional:
            self._arguments["capabilities"] = ("full", "distribute", "stages", "count_mlps")
        self._policy = self._ask(_host.limitable(), lambda line: self.notices.append((self.said(line), False)),
                                 lambda line: self.notices.append((self.said(line), True)))

    def _ask(self, modules, log=lambda line: None, warn=None):
        try:
            return Policy("Megatron-LM", modules=modules, log=log, warn=warn, **self._arguments)
        except RecoupError as error:
            raise ValueError(self.said(str(error))) from None

    def said(self, text: str) -> str:
        """A message of the policy as Megatron words its own: of the option, after the place that gave it."""
        text = text.removeprefix("recoup: ").replace("this host", "this Megatron-LM")
        text = re.sub(rf"({VARIABLE}): must", r"\1: recompute_mlp_num_layers: must", text)
        ours = "|".join(_fields.names())
        text = re.sub(rf"\b({ours}): (?=must|requires)", lambda m: f"{_option(m[1])} ", text)
        text = re.sub(r"(?<=requires )recompute_granularity: ", "--recompute-granularity ", text)
        text = re.sub(r"(?<= in )recompute_modules\b", "--recompute-modules", text)
        text = re.sub(r"(must be >= 1), not -?\d+$", r"\1", text)
        # The job's own options have no file.
        return re.sub(r"\boptions:\d+:\d+: (recompute_\w+|(?=--))", lambda m: _option(m[1]), text)

    @functools.cached_property
    def modules(self) -> tuple:
        """The modules that it lists, with or without layers in this model."""
        listed = []
        for module in _host.limitable():
            try:
                self._ask([m for m in _host.limitable() if m != module])
            except ValueError as error:
                if f'cannot recompute "{module}"' not in str(error):
                    raise
                listed.append(module)
        return tuple(listed)

    @functools.cached_property
    def full(self) -> Optional[Full]:
        """Granularity full with its method and number, as written; None: another granularity."""
        def group(number):
            return self._decide(number, mlp_number=number).full_group

        if self.modules or not group(1):
            return None
        if group(1) > 1:
            return Full("uniform", group(1))
        if group(_FAR):
            return Full("uniform", 1)
        low, high = 1, _FAR
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if group(middle) else (low, middle)
        return Full("block", low)

    @functools.cached_property
    def distribute(self) -> bool:
        return self._decide(1, mlp_number=1).distribute_saved_activations

    def _decide(self, number, is_moe=False, stage_offset=0, mlp_number=0):
        optional = inspect.signature(self._policy.decide).parameters
        more = {name: value for name, value in (("mlp_number", mlp_number), ("query", True))
                if name in optional}
        try:
            return self._policy.decide(number, is_moe, stage_offset, **more)
        except RecoupError as error:
            raise ValueError(self.said(str(error))) from None

    def layer(self, number: int, stage_offset: int = 0,
              mlp_number: Optional[int] = None) -> FrozenSet[str]:
        """What a layer recomputes of the modules that it has: it knows itself whether it is MoE.
        mlp_number: among the model's dense MLPs; 0: the layer has none; None: unknown."""
        kinds = (True,) if mlp_number == 0 else (False, True)
        return frozenset().union(*(self._decide(number, moe, stage_offset, mlp_number or 0).modules
                                   for moe in kinds))

    def beyond(self) -> FrozenSet[str]:
        """The modules that any layer after the last one recomputes too: no end is said for them."""
        return self.layer(_FAR, 0, _FAR)


@functools.lru_cache(maxsize=None)
def _source(*arguments, **keywords) -> Source:
    return Source(*arguments, **keywords)


def forget() -> None:
    """For tests: what was read is read again."""
    _source.cache_clear()


def applies(config) -> bool:
    """Whether recoup's own configuration is meant for this model: RECOUP_MODELS names classes."""
    named = os.environ.get("RECOUP_MODELS")
    return not named or any(cls.__name__ in re.split(r"[,\s]+", named) for cls in type(config).__mro__)


def from_recoup(config, **counts) -> Optional[Source]:
    """What recoup's file or environment says for a config; None where it says nothing."""
    path = config.recoup_config
    if path is not None and _fields.off(path):
        return None
    environment = os.environ.get("RECOUP_CONFIG")
    number = os.environ.get(VARIABLE)
    if environment == "" and path is None and not number:
        _log.once("RECOUP_CONFIG is set, but empty: it is as if it were not set")
    if path is None and not (applies(config) and (environment or number)):
        return None
    path = path or environment or None
    key = (path, _stamp(path), number)
    name = " and ".join(filter(None, [path, number and f"{VARIABLE}={number}"]))
    return _keyed(key, name, config.num_layers, path, tuple(sorted(counts.items())))


def _stamp(path):
    try:
        return path and os.stat(path).st_mtime_ns
    except OSError:
        return None


@functools.lru_cache(maxsize=None)
def _keyed(_key, name, num_layers, path, counts) -> Source:
    return Source(name, num_layers, path=path, **dict(counts))


def from_job(config, **counts) -> Optional[Source]:
    """The layers that the job's own options say; None where they say none."""
    lines, modules = [], []
    for module in _host.limitable():
        for field in _fields.limits(module):
            value = getattr(config, field)
            if value is not None:
                modules.append(module)
                lines.append(f"{field}: {value if isinstance(value, int) else json.dumps(str(value))}")
    if not lines:
        return None
    scope = config.recompute_layer_scope
    yaml = "\n".join(["recompute_granularity: selective",
                      f"recompute_modules: [{', '.join(dict.fromkeys(modules))}]", *lines,
                      *([f"recompute_layer_scope: {scope}"] if scope else [])])
    with _without_environment():
        return _source("the job's options", config.num_layers, yaml=yaml, **counts)


class _without_environment:
    """The environment limits the MLP over every configuration; the job's own is asked without it."""

    def __enter__(self):
        self._saved = {name: os.environ.pop(name) for name in (VARIABLE, "RECOUP_CONFIG")
                       if name in os.environ}

    def __exit__(self, *_):
        os.environ.update(self._saved)
