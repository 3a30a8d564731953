"""recoup's plugin interface for Python hosts: the C++ policy decides, through plugin/include/recoup/plugin.h."""
import ctypes as c
import os
from typing import Callable, Optional

MODULES = ("core_attn", "mlp", "layernorm", "moe_act", "moe", "shared_experts", "mla_up_proj")

_ERROR_SIZE = 2048
_Log = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p)


class _Layer(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("layer_number", c.c_int64), ("is_moe", c.c_int32),
                ("stage_offset", c.c_int64), ("recompute_mlp", c.c_int32),
                ("recompute_modules", c.c_uint32), ("full_group", c.c_int64),
                ("mlp_activation_only", c.c_int32), ("distribute_saved_activations", c.c_int32),
                ("profile", c.c_int32)]


_Hook = c.CFUNCTYPE(c.c_int, c.c_void_p, c.POINTER(_Layer), c.c_char_p, c.c_size_t)
_Register = c.CFUNCTYPE(c.c_int, c.c_void_p, _Hook, c.c_void_p)


class _Host(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("name", c.c_char_p), ("torch_version", c.c_char_p),
                ("config_path", c.c_char_p), ("rank", c.c_int32), ("num_layers", c.c_int64),
                ("stage_num_layers", c.c_int64), ("modules", c.c_uint32), ("log", _Log),
                ("log_user", c.c_void_p), ("register_layer_hook", _Register), ("host", c.c_void_p),
                ("config_yaml", c.c_char_p)]


class _Plugin(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("abi_version", c.c_uint32), ("name", c.c_char_p),
                ("version", c.c_char_p), ("torch_version", c.c_char_p),
                ("init", c.CFUNCTYPE(c.c_int, c.POINTER(c.c_void_p), c.POINTER(_Host), c.c_char_p,
                                     c.c_size_t)),
                ("checkpoint", c.c_void_p), ("finalize", c.CFUNCTYPE(None, c.c_void_p))]


class RecoupError(ValueError):
    """A configuration or host that recoup refuses; the text names file, line and key."""


def library(name: str) -> str:
    """The path of a built library: in $RECOUP_BUILD, else in the build folder of this clone."""
    here = os.path.dirname(os.path.abspath(__file__))
    folder = os.environ.get("RECOUP_BUILD") or os.path.join(here, "..", "..", "build")
    path = os.path.abspath(os.path.join(folder, name))
    if not os.path.exists(path):
        raise ImportError(f"recoup: {path} is not there; build recoup (examples/run.sh) or set "
                          "RECOUP_BUILD to its build folder")
    return path


class Policy:
    """Which layers recompute what, decided by librecoup_policy.so."""

    def __init__(self, name: str, config: Optional[str] = None, num_layers: int = 0,
                 stage_num_layers: int = 0, modules=MODULES, rank: int = 0,
                 log: Optional[Callable[[str], None]] = None):
        entry = c.CDLL(library("librecoup_policy.so")).recoup_plugin_v1
        entry.restype, entry.argtypes = c.POINTER(_Plugin), [c.c_uint32]
        plugin = entry(1)
        if not plugin or plugin.contents.struct_size < c.sizeof(_Plugin):
            raise RecoupError("recoup: librecoup_policy.so does not speak ABI version 1; build it and "
                              "this host from the same recoup")
        self._api = plugin.contents
        # Kept alive: the plugin calls them.
        self._log = _Log(lambda _user, _level, line: (log or print)(line.decode()))
        self._hook = None

        def register(_host, hook, context):
            self._hook, self._context = hook, context
            return 0

        self._register = _Register(register)
        host = _Host(c.sizeof(_Host), name.encode(), None, config.encode() if config else None, rank,
                     num_layers, stage_num_layers, sum(1 << MODULES.index(m) for m in modules),
                     self._log, None, self._register, None, None)
        self._plugin = c.c_void_p()
        self._check(lambda error: self._api.init(c.byref(self._plugin), c.byref(host), error,
                                                 _ERROR_SIZE))

    @staticmethod
    def _check(call):
        error = c.create_string_buffer(_ERROR_SIZE)
        if call(error) != 0:
            raise RecoupError(error.value.decode())

    def _ask(self, number, is_moe, stage_offset):
        layer = _Layer(c.sizeof(_Layer), number, int(is_moe), stage_offset)
        self._check(lambda error: self._hook(self._context, c.byref(layer), error, _ERROR_SIZE))
        return layer

    def layer(self, number: int, is_moe: bool = False, stage_offset: int = 0) -> frozenset:
        """The names of the modules that this layer recomputes."""
        bits = self._ask(number, is_moe, stage_offset).recompute_modules
        return frozenset(m for i, m in enumerate(MODULES) if bits >> i & 1)

    def full_group(self, number: int) -> int:
        """Granularity full: how many layers from this one on share a checkpoint; 0: none starts here."""
        return self._ask(number, False, 0).full_group

    def __del__(self):
        if getattr(self, "_plugin", None):
            self._api.finalize(self._plugin)
