"""Which layers recompute what: the C++ policy, asked through the plugin's contract. Needs no torch."""
import ctypes as c
import sys
from dataclasses import dataclass
from typing import Callable, FrozenSet, Iterable, Optional, Union

from . import _contract
from ._library import library


class RecoupError(ValueError):
    """A configuration or host that recoup refuses; the text names file, line and key."""


@dataclass(frozen=True)
class Decision:
    """What one layer is to recompute."""

    modules: FrozenSet[str]  # names of the modules, such as "mlp" and "core_attn"
    mlp_activation_only: bool  # beside "mlp": keep fc1's output, recompute what follows it
    full_group: int  # how many layers from this one on share one checkpoint; 0: none starts here
    distribute_saved_activations: bool  # each tensor-parallel rank keeps its part of the inputs
    profile: bool  # nothing is recomputed, everything measured (RECOUP_PROFILE)

    @property
    def mlp(self) -> bool:
        return "mlp" in self.modules


def _table():
    return _contract.load(library("librecoup_policy.so"))


def known_modules() -> tuple:
    """The names of all modules that the policy knows, as the library tells them."""
    return tuple(_contract.modules(_table()))


def environment() -> str:
    """What in the environment says what to recompute, such as "environment variable RECOUP_CONFIG";
    empty: nothing."""
    return _contract.configured(_table())



class Policy:
    """The decisions for one model.

    name              of the host, for messages
    config            a YAML file; None: the environment's RECOUP_CONFIG or
                      RECOUP_RECOMPUTE_MLP_NUM_LAYERS, else nothing is recomputed
    yaml              the options themselves, in place of a file
    num_layers        in the whole model; 0: not known, and then counts from the end are refused
    stage_num_layers  on this pipeline stage; 0: not known
    modules           what the host can recompute; a configuration that asks for more is refused.
                      "all": every module that the library knows. "mlp_activation", beside "mlp": the
                      host can keep fc1's output and recompute only what follows it
    capabilities      what else the host can do: "full" (checkpoints whole layers), "distribute" (saved
                      inputs over tensor-parallel ranks), "stages" (gives stage_offset), "count_mlps"
                      (gives mlp_number); a configuration that asks for more is refused. "all": each
    num_mlps          dense MLPs in the whole model; 0: not known
    rank              global; only rank 0 logs
    log               gets each line; None: standard error
    warn              gets each warning; None: as log

    RecoupError where the configuration is refused; nothing is half-applied then.
    """

    def __init__(self, name: str, config: Optional[str] = None, num_layers: int = 0,
                 stage_num_layers: int = 0, modules: Union[str, Iterable[str]] = ("mlp",),
                 rank: int = 0, log: Optional[Callable[[str], None]] = None,
                 warn: Optional[Callable[[str], None]] = None, yaml: Optional[str] = None,
                 capabilities: Union[str, Iterable[str]] = (), num_mlps: int = 0):
        self._plugin = None
        self._api = _table()
        self._bits = _contract.modules(self._api)
        offered = self._bits if modules == "all" else list(modules)
        bits = {**self._bits, "mlp_activation": _contract.MLP_ACTIVATION}
        unknown = [m for m in offered if m not in bits]
        if unknown:
            raise RecoupError(f'recoup: "{unknown[0]}" is no module; allowed are '
                              f"{', '.join(self._bits)}")
        if capabilities == "all":
            capabilities = tuple(_contract.CAPABILITIES)
        unknown = [name for name in capabilities if name not in _contract.CAPABILITIES]
        if unknown:
            raise RecoupError(f'recoup: "{unknown[0]}" is no capability; allowed are '
                              f"{', '.join(_contract.CAPABILITIES)}")
        log = log or (lambda line: print(line, file=sys.stderr))
        warn = warn or log

        def say(_user, level, line):
            (warn if level == _contract.WARNING else log)(line.decode(errors="replace"))

        # Kept alive: the plugin calls them.
        self._log = _contract.Log(say)
        self._hook = None

        def register(_host, hook, context):
            # A function of our own: ctypes frees what it made for this call.
            address = c.cast(hook, c.c_void_p).value
            self._hook, self._context = _contract.Hook(address), context
            return _contract.OK

        self._register = _contract.Register(register)
        host = _contract.Host(
            c.sizeof(_contract.Host), name.encode(), None, config.encode() if config else None, rank,
            num_layers, stage_num_layers, sum(bits[m] for m in offered), self._log, None,
            self._register, None, yaml.encode() if yaml is not None else None,
            sum(_contract.CAPABILITIES[name] for name in capabilities), num_mlps)
        plugin = c.c_void_p()
        self._check(lambda error: self._api.init(c.byref(plugin), c.byref(host), error,
                                                 _contract.ERROR_SIZE))
        self._plugin = plugin

    @staticmethod
    def _check(call):
        error = c.create_string_buffer(_contract.ERROR_SIZE)
        if call(error) != _contract.OK:
            raise RecoupError(error.value.decode(errors="replace"))

    def decide(self, number: int, is_moe: bool = False, stage_offset: int = 0, mlp_number: int = 0,
               query: bool = False) -> Decision:
        """What a layer recomputes. `number` is global and starts at 1; `stage_offset` is how many
        layers come before this pipeline stage; `mlp_number` the layer's number among the model's dense
        MLPs, 0 where it is not known. Rank 0 logs the decision, unless this is only a `query`."""
        layer = _contract.Layer(c.sizeof(_contract.Layer), number, int(is_moe), stage_offset)
        layer.mlp_number = mlp_number
        layer.flags = _contract.LAYER_QUERY if query else 0
        self._check(lambda error: self._hook(self._context, c.byref(layer), error,
                                             _contract.ERROR_SIZE))
        return Decision(
            frozenset(m for m, bit in self._bits.items() if layer.recompute_modules & bit),
            bool(layer.mlp_activation_only), layer.full_group,
            bool(layer.distribute_saved_activations), bool(layer.profile))

    def layer(self, number: int, is_moe: bool = False, stage_offset: int = 0) -> FrozenSet[str]:
        """The names of the modules that this layer recomputes."""
        return self.decide(number, is_moe, stage_offset).modules

    def full_group(self, number: int) -> int:
        """Granularity full: how many layers from this one on share a checkpoint; 0: none starts here."""
        return self.decide(number).full_group

    def __del__(self):
        if self._plugin and _contract.has(self._api, "finalize"):
            self._api.finalize(self._plugin)
