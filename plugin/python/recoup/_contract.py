"""plugin/include/recoup/plugin.h in ctypes: the contract between a host and a plugin.

Fields stand in the header's order and are only ever appended, there and here. What a library is asked
for is looked up under its own struct_size, so that shorter tables (older libraries) and longer ones
(newer) are spoken to alike; a function that a table does not reach to is not there.
"""
import ctypes as c
import os

ABI_VERSION = 1
ENTRY_SYMBOL = "recoup_plugin_v1"
ERROR_SIZE = 4096
OK, BAD_CONFIG = 0, 2
WARNING = 1  # recoup_log_level

Log = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p)


class Layer(c.Structure):
    """recoup_layer_v1."""

    _fields_ = [("struct_size", c.c_size_t), ("layer_number", c.c_int64), ("is_moe", c.c_int32),
                ("stage_offset", c.c_int64), ("recompute_mlp", c.c_int32),
                ("recompute_modules", c.c_uint32), ("full_group", c.c_int64),
                ("mlp_activation_only", c.c_int32), ("distribute_saved_activations", c.c_int32),
                ("profile", c.c_int32),
                # Since 1.1.
                ("handle", c.c_void_p), ("flags", c.c_uint64), ("mlp_number", c.c_int64),
                ("microbatch", c.c_int64)]


LAYER_QUERY = 1  # recoup_layer_flag
CAPABILITIES = {"full": 1, "distribute": 2, "stages": 4, "count_mlps": 8}  # recoup_capability

Hook = c.CFUNCTYPE(c.c_int, c.c_void_p, c.POINTER(Layer), c.c_char_p, c.c_size_t)
Register = c.CFUNCTYPE(c.c_int, c.c_void_p, Hook, c.c_void_p)


class Host(c.Structure):
    """recoup_host_v1."""

    _fields_ = [("struct_size", c.c_size_t), ("name", c.c_char_p), ("torch_version", c.c_char_p),
                ("config_path", c.c_char_p), ("rank", c.c_int32), ("num_layers", c.c_int64),
                ("stage_num_layers", c.c_int64), ("modules", c.c_uint32), ("log", Log),
                ("log_user", c.c_void_p), ("register_layer_hook", Register), ("host", c.c_void_p),
                ("config_yaml", c.c_char_p),
                # Since 1.1.
                ("capabilities", c.c_uint64), ("num_mlps", c.c_int64),
                # For a memory budget, which no Python host keeps.
                ("memory", c.c_void_p), ("agree", c.c_void_p), ("device_bytes", c.c_int64),
                ("pipeline_stages", c.c_int64), ("pipeline_stage", c.c_int64)]


class ModuleInfo(c.Structure):
    """recoup_module_info_v1."""

    _fields_ = [("struct_size", c.c_size_t), ("name", c.c_char_p), ("meaning", c.c_char_p),
                ("bit", c.c_uint32), ("layers", c.c_int32)]


class Plugin(c.Structure):
    """recoup_plugin_v1."""

    _fields_ = [("struct_size", c.c_size_t), ("abi_version", c.c_uint32), ("name", c.c_char_p),
                ("version", c.c_char_p), ("torch_version", c.c_char_p),
                ("init", c.CFUNCTYPE(c.c_int, c.POINTER(c.c_void_p), c.POINTER(Host), c.c_char_p,
                                     c.c_size_t)),
                ("checkpoint", c.c_void_p), ("finalize", c.CFUNCTYPE(None, c.c_void_p)),
                # Since 1.1.
                ("abi_minor", c.c_uint64), ("module", c.CFUNCTYPE(c.POINTER(ModuleInfo), c.c_size_t)),
                ("configured", c.CFUNCTYPE(c.c_int32, c.c_char_p, c.c_size_t)),
                ("decide", c.CFUNCTYPE(c.c_int, c.c_void_p, c.POINTER(Layer), c.c_char_p, c.c_size_t)),
                ("close", c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_size_t)),
                ("step_end", c.c_void_p)]


# hooks/include/recoup/modules.h as it was in 1.0, whose libraries cannot be asked for it.
FIRST_MODULES = {"core_attn": 0x01, "mlp": 0x02, "layernorm": 0x04, "moe_act": 0x08, "moe": 0x10,
                 "shared_experts": 0x20, "mla_up_proj": 0x40}
MLP_ACTIVATION = 0x80  # no module: the MLP from fc1's output on


def has(table, field: str) -> bool:
    """Whether a table, as its owner compiled it, reaches to `field`, and has something there."""
    description = getattr(type(table), field)
    return table.struct_size >= description.offset + description.size and bool(getattr(table, field))


def load(path: str):
    """The table of a plugin library. ImportError, in one sentence, where it cannot be used."""
    try:
        library = c.CDLL(path)
        entry = getattr(library, ENTRY_SYMBOL)
    except (OSError, AttributeError) as error:
        raise ImportError(f"recoup: {path} is no plugin that can be loaded: {error}") from None
    entry.restype, entry.argtypes = c.POINTER(Plugin), [c.c_uint32]
    table = entry(ABI_VERSION)
    if not table or not has(table.contents, "init"):
        raise ImportError(f"recoup: {path} does not speak ABI version {ABI_VERSION}; build it and this "
                          "package from the same recoup")
    return table.contents


def modules(table) -> dict:
    """{name: bit} of the modules that a library knows."""
    if not has(table, "module"):
        return dict(FIRST_MODULES)
    known, index = {}, 0
    while row := table.module(index):
        known[row.contents.name.decode()] = row.contents.bit
        index += 1
    return known


def configured(table) -> str:
    """What outside the host configures recoup, such as "environment variable RECOUP_CONFIG";
    empty: nothing."""
    if not has(table, "configured"):
        names = ("RECOUP_CONFIG", "RECOUP_RECOMPUTE_MLP_NUM_LAYERS")
        return ", ".join(f"environment variable {name}" for name in names if os.environ.get(name))
    what = c.create_string_buffer(ERROR_SIZE)
    return what.value.decode() if table.configured(what, ERROR_SIZE) else ""
