#!/usr/bin/env python3
"""Per-layer recompute for Megatron-LM: adds recompute_mlp_num_layers, and the same for every other module
that it can recompute, to an installed megatron-core or to a Megatron-LM checkout.

    patch_megatron.py apply|revert|status [--dry-run] [FOLDER]

FOLDER has megatron/core in it: a checkout, or the site-packages that megatron-core is installed in;
without it, the Megatron that Python imports here. Where megatron/training/arguments.py is there too, the
command line gets the option and its checks.
"""
import ast
import importlib.util
import os
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)),
                os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")]
import megatron_sites as sites  # noqa: E402
from applier import Edit, FilePatch, Patch, main  # noqa: E402


CONFIG_FIELD = '''
recompute_mlp_num_layers: Optional[int] = None
"""When using selective checkpointing with 'mlp' in recompute_modules,
only apply MLP recomputation to the first N layers (1-indexed).
If None, MLP recomputation applies to all layers.
Example: recompute_mlp_num_layers=12 applies MLP checkpointing to layers 1-12 only.
"""
'''.lstrip("\n")


def _checks(owner):
    return f'''
# Validate recompute_mlp_num_layers
if {owner}.recompute_mlp_num_layers is not None:
    if {owner}.recompute_granularity != 'selective':
        raise ValueError(
            '--recompute-mlp-num-layers requires --recompute-granularity selective'
        )
    if {owner}.recompute_modules is None or 'mlp' not in {owner}.recompute_modules:
        raise ValueError(
            '--recompute-mlp-num-layers requires "mlp" in --recompute-modules'
        )
    if {owner}.recompute_mlp_num_layers < 1:
        raise ValueError('--recompute-mlp-num-layers must be >= 1')

'''.lstrip("\n")


def _module_field(module):
    return f'''
recompute_{module}_num_layers: Optional[int] = None
"""When using selective checkpointing with '{module}' in recompute_modules,
only apply it to the first N layers (1-indexed). If None, it applies to all layers.
"""
'''.lstrip("\n")


def _module_argument(module):
    option = module.replace("_", "-")
    return f'''
group.add_argument('--recompute-{option}-num-layers', type=int, default=None,
                   help='When using selective checkpointing with "{module}" in '
                   '--recompute-modules, only apply it to the first N layers. '
                   'If not set, applies to all layers.')
'''.lstrip("\n")


def _argument_checks(modules):
    """The checks of the command line; with mlp alone, the specification's."""
    return _checks("args") + (f'''
# Validate recompute_<module>_num_layers
for module in {modules!r}:
    layers = getattr(args, f'recompute_{{module}}_num_layers', None)
    if layers is not None:
        option = '--recompute-' + module.replace('_', '-') + '-num-layers'
        default = ['core_attn'] if args.recompute_modules is None else args.recompute_modules
        if args.recompute_granularity != 'selective':
            raise ValueError(f'{{option}} requires --recompute-granularity selective')
        if module not in default:
            raise ValueError(f'{{option}} requires "{{module}}" in --recompute-modules')
        if layers < 1:
            raise ValueError(f'{{option}} must be >= 1')

'''.lstrip("\n") if modules else "")


# Of the whole config: the environment's N, and the checks of every field.
CONFIGURE = '''
# Per-layer recompute: the environment's limit, and the checks of recompute_<module>_num_layers.
from megatron.core.transformer.recoup_layers import configure

configure(self)

'''.lstrip("\n")

YAML_FIELDS = '''
# A job's YAML need not name the per-layer options.
for name in {names!r}:
    if not hasattr(args, name):
        setattr(args, name, None)
'''.lstrip("\n")


def _layer_view(mtp):
    return f'''
# This layer's own view of the config: the modules that it recomputes of recompute_modules.
from megatron.core.transformer.recoup_layers import of_layer

config = of_layer(config, self{", is_mtp_layer" if mtp else ""})
'''.lstrip("\n")


LAYER_FLAG = '''
# Apply MLP recompute only to the first N layers if specified; layer_number is 1-indexed.
self.recompute_mlp = (
    self.config.recompute_mlp_num_layers is None
    or self.layer_number <= self.config.recompute_mlp_num_layers
)
log_single_rank(
    logger, logging.INFO, f"Layer {self.layer_number}: recompute_mlp={self.recompute_mlp}"
)
'''.lstrip("\n")

CLI_ARGUMENT = '''
group.add_argument('--recompute-mlp-num-layers', type=int, default=None,
                   help='When using selective checkpointing with "mlp" in '
                   '--recompute-modules, only apply MLP recomputation to the '
                   'first N layers. If not set, applies to all layers. '
                   'Example: --recompute-mlp-num-layers 12 applies MLP '
                   'checkpointing to layers 1-12 only.')
'''.lstrip("\n")

_CORE = "megatron/core/transformer/"
_ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def _read(tree, path):
    """A file's syntax tree; None where it is missing or cannot be read, which the edits will say."""
    try:
        with open(os.path.join(tree, path), encoding="utf-8", newline="") as file:
            return sites.Tree(file.read().replace("\r\n", "\n"))
    except (OSError, SyntaxError, ValueError):
        return None


def _modules(config):
    """The modules that this Megatron-LM allows in recompute_modules, but for mlp, whose lines are the
    specification's, and mhc, which is recomputed by whole blocks."""
    for block in ast.walk(config.module) if config else ():
        body = getattr(block, "body", None)
        for first, second in zip(body, body[1:]) if isinstance(body, list) else ():
            if (isinstance(first, ast.Assign) and isinstance(first.value, ast.Set)
                    and ast.unparse(first.targets[0]) == "allowed_modules"
                    and "recompute_modules" in ast.dump(second)):
                return tuple(sorted({e.value for e in first.value.elts} - {"mlp", "mhc"}))
    return ()


def _source(path):
    """A file of recoup's, in a clone or beside this file's folder in an installed package."""
    for root in (_ROOT, os.path.join(_ROOT, "..")):
        name = os.path.join(root, path)
        if os.path.exists(name):
            with open(name, "rb") as file:
                return file.read()
    raise FileNotFoundError(f"recoup: {path} is missing from this installation")


def _field_edit(lines, name="the field recompute_mlp_num_layers"):
    return Edit(name, "TransformerConfig's field recompute_modules", sites.finder(sites.config_field), lines)


def _checks_edit(lines, name="the field's checks"):
    return Edit(name, "if self.recompute_granularity is not None in TransformerConfig.__post_init__",
                sites.finder(sites.config_checks), lines)


def _argument_edit(lines, name="the option --recompute-mlp-num-layers"):
    return Edit(name, "add_argument('--recompute-modules', ...)", sites.finder(sites.cli_argument), lines)


def _argument_checks_edit(lines):
    return Edit("the option's checks", "if args.recompute_granularity == 'selective' in validate_args",
                sites.finder(sites.cli_checks), lines)


_FLAG = Edit("the first N layers only",
             'self.recompute_mlp = True under if "mlp" in self.config.recompute_modules',
             sites.finder(sites.layer_flag), LAYER_FLAG, replaced="self.recompute_mlp = True\n")


def _files(tree):
    config, layer = _read(tree, _CORE + "transformer_config.py"), _read(tree, _CORE + "transformer_layer.py")
    views = layer is not None and len(sites.layer_init(layer)) == 1
    modules = _modules(config) if views else ()
    names = tuple(f"recompute_{module}_num_layers" for module in ("mlp", *modules))
    legacy_fields = [_field_edit(CONFIG_FIELD), _checks_edit(_checks("self"))]

    files = [
        FilePatch(_CORE + "transformer_config.py",
                  [_field_edit(CONFIG_FIELD + "".join(map(_module_field, modules))),
                   _checks_edit(CONFIGURE if views else _checks("self"))], legacy=legacy_fields),
        FilePatch(_CORE + "transformer_layer.py", [*([_view_edit(layer)] if views else []), _FLAG]),
        *_arguments(tree, modules),
    ]
    yaml = "megatron/training/yaml_arguments.py"
    if _read(tree, yaml) and len(sites.yaml_loop(_read(tree, yaml))) == 1:
        files.append(FilePatch(yaml, [Edit("options that a YAML need not name", "the loop over fields",
                                           sites.finder(sites.yaml_loop), YAML_FIELDS.format(names=names))]))
    if views:
        files += [FilePatch(_CORE + "recoup_view.py", content=_view_source()),
                  FilePatch(_CORE + "recoup_layers.py",
                            content=_source("patches/megatron/sources/recoup_layers.py"))]
    return files


def _view_edit(layer):
    mtp = any("is_mtp_layer" in [a.arg for a in init.args.args] for cls in layer.of(
        ast.ClassDef, name="TransformerLayer") for init in layer.of(ast.FunctionDef, cls, name="__init__"))
    return Edit("the layer's view of the config", "super().__init__(config=config) in TransformerLayer",
                sites.finder(sites.layer_init), _layer_view(mtp))


def _view_source():
    try:
        return _source("plugin/python/recoup/megatron/_view.py")
    except FileNotFoundError:
        return _source("megatron/_view.py")


def _arguments(tree, modules):
    path = "megatron/training/arguments.py"
    edits = [_argument_edit(CLI_ARGUMENT + "".join(map(_module_argument, modules)))]
    legacy = [_argument_edit(CLI_ARGUMENT)]
    try:
        with open(os.path.join(tree, path), encoding="utf-8", errors="replace") as file:
            # Since 2026 Megatron-LM makes its options from TransformerConfig's fields.
            if "ArgumentGroupFactory(TransformerConfig" in file.read():
                edits, legacy = [], []
    except OSError:
        pass
    return [FilePatch(path, [*edits, _argument_checks_edit(_argument_checks(modules))], optional=True,
                      legacy=[*legacy, _argument_checks_edit(_checks("args"))])]


def _importable():
    """The folder of the Megatron-LM that Python imports here."""
    try:
        spec = importlib.util.find_spec("megatron.core")
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return os.path.dirname(os.path.dirname(os.path.abspath(list(spec.submodule_search_locations)[0])))


PATCH = Patch("Megatron-LM", _files, anchor="megatron/core/transformer/transformer_config.py",
              locate=_importable, signs=r"(?i)\brecoup|recompute_mlp_num_layers", within=("megatron",))

if __name__ == "__main__":
    sys.exit(main(PATCH))
