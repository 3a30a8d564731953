#!/usr/bin/env python3
"""Selective MLP recompute for Megatron-LM: adds recompute_mlp_num_layers to an installed megatron-core
or to a Megatron-LM checkout.

    patch_megatron.py apply|revert|status [--dry-run] [FOLDER]

FOLDER has megatron/core in it: a checkout, or the site-packages that megatron-core is installed in;
without it, the Megatron that Python imports here. Where megatron/training/arguments.py is there too, the
command line gets the option and its checks.
"""
import ast
import importlib.util
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from applier import Edit, FilePatch, Patch, Site, main  # noqa: E402


class _Tree:
    """A parsed file that knows where in its text each node stands."""

    def __init__(self, text):
        self.lines = text.split("\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.starts[-1] -= 1  # the last line has no end of its own
        self.module = ast.parse(text.removeprefix("\ufeff"))

    def of(self, kind, within=None, **fields):
        """All nodes of a kind whose fields have these values."""
        return [node for node in ast.walk(within or self.module) if isinstance(node, kind)
                and all(getattr(node, name, None) == value for name, value in fields.items())]

    def before(self, node):
        """The site just before the line that a node starts on."""
        line = self.lines[node.lineno - 1]
        start = self.starts[node.lineno - 1]
        return Site(start, start, line[:len(line) - len(line.lstrip())])

    def after(self, node):
        """The site just after the line that a node ends on."""
        return self.before(node)._replace(start=self.starts[node.end_lineno],
                                          end=self.starts[node.end_lineno])

    def replacing(self, node):
        return self.before(node)._replace(end=self.starts[node.end_lineno])


def _finder(find):
    """Lets an edit's `find` work on a _Tree; a file that is not valid Python has no site."""
    def sites(text):
        try:
            return find(_Tree(text))
        except (SyntaxError, ValueError):
            return []
    return sites


def _is(node, source):
    """Whether a node is this expression, however it is written."""
    return node is not None and ast.dump(node) == ast.dump(ast.parse(source, mode="eval").body)


def _config_field(tree):
    """After the docstring of TransformerConfig.recompute_modules."""
    sites = []
    for config in tree.of(ast.ClassDef, name="TransformerConfig"):
        for field, following in zip(config.body, config.body[1:]):
            if isinstance(field, ast.AnnAssign) and _is_name(field.target, "recompute_modules"):
                documented = isinstance(following, ast.Expr) and isinstance(
                    getattr(following.value, "value", None), str)
                sites.append(tree.after(following if documented else field))
    return sites


def _is_name(node, name):
    return isinstance(node, ast.Name) and node.id == name


def _config_checks(tree):
    """Before TransformerConfig.__post_init__ looks at recompute_granularity."""
    return [tree.before(statement)
            for config in tree.of(ast.ClassDef, name="TransformerConfig")
            for init in tree.of(ast.FunctionDef, config, name="__post_init__")
            for statement in init.body if isinstance(statement, ast.If)
            and _is(statement.test, "self.recompute_granularity is not None")]


def _layer_flag(tree):
    """The line `self.recompute_mlp = True` under `if "mlp" in self.config.recompute_modules`."""
    return [tree.replacing(line)
            for branch in tree.of(ast.If) if _is(branch.test, "'mlp' in self.config.recompute_modules")
            for line in tree.of(ast.Assign, branch)
            if ast.unparse(line) == "self.recompute_mlp = True"]


def _cli_argument(tree):
    """After group.add_argument('--recompute-modules', ...)."""
    return [tree.after(line) for line in tree.of(ast.Expr)
            if isinstance(line.value, ast.Call) and isinstance(line.value.func, ast.Attribute)
            and line.value.func.attr == "add_argument" and line.value.args
            and _is(line.value.args[0], "'--recompute-modules'")]


def _cli_checks(tree):
    """Before validate_args' own `if args.recompute_granularity == 'selective'`."""
    return [tree.before(statement) for function in tree.of(ast.FunctionDef)
            if function.name in ("validate_args", "_validate_args")
            for statement in function.body if isinstance(statement, ast.If)
            and _is(statement.test, "args.recompute_granularity == 'selective'")]


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

_ARGUMENT = Edit("the option --recompute-mlp-num-layers", "add_argument('--recompute-modules', ...)",
                 _finder(_cli_argument), CLI_ARGUMENT)
_ARGUMENT_CHECKS = Edit("the option's checks",
                        "if args.recompute_granularity == 'selective' in validate_args",
                        _finder(_cli_checks), _checks("args"))


def _files(tree):
    core = "megatron/core/transformer/"
    arguments = "megatron/training/arguments.py"
    edits = [_ARGUMENT, _ARGUMENT_CHECKS]
    try:
        with open(os.path.join(tree, arguments), encoding="utf-8", errors="replace") as file:
            # Since 2026 Megatron-LM makes its options from TransformerConfig's fields.
            if "ArgumentGroupFactory(TransformerConfig" in file.read():
                edits = [_ARGUMENT_CHECKS]
    except OSError:
        pass
    return [
        FilePatch(core + "transformer_config.py", [
            Edit("the field recompute_mlp_num_layers",
                 "TransformerConfig's field recompute_modules", _finder(_config_field), CONFIG_FIELD),
            Edit("the field's checks",
                 "if self.recompute_granularity is not None in TransformerConfig.__post_init__",
                 _finder(_config_checks), _checks("self")),
        ]),
        FilePatch(core + "transformer_layer.py", [
            Edit("the first N layers only",
                 'self.recompute_mlp = True under if "mlp" in self.config.recompute_modules',
                 _finder(_layer_flag), LAYER_FLAG, replaced="self.recompute_mlp = True\n"),
        ]),
        FilePatch(arguments, edits, optional=True),
    ]


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
