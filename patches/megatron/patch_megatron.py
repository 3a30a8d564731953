#!/usr/bin/env python3
"""Selective MLP recompute for Megatron-LM: adds recompute_mlp_num_layers to an installed megatron-core
or to a Megatron-LM checkout.

    patch_megatron.py apply|revert|status [--dry-run] FOLDER

FOLDER has megatron/core in it: a checkout, or the site-packages that megatron-core is installed in.
Where megatron/training/arguments.py is there too, the command line gets the option and its checks.
"""
import os
import sys

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from applier import Edit, FilePatch, Patch, PatchError, Site, main  # noqa: E402


class _Tree:
    """A parsed file that knows where in its text each node stands."""

    def __init__(self, text):
        self.text = text
        self.lines = text.splitlines(True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
        self.module = wrapper.module
        self.positions = wrapper.resolve(PositionProvider)

    def find(self, matcher, within=None):
        return m.findall(within or self.module, matcher)

    def indent(self, node):
        line = self.lines[self.positions[node].start.line - 1]
        return line[:len(line) - len(line.lstrip())]

    def before(self, node):
        """The site just before the line that a node starts on."""
        start = self.starts[self.positions[node].start.line - 1]
        return Site(start, start, self.indent(node))

    def after(self, node):
        """The site just after the line that a node ends on."""
        end = self.starts[self.positions[node].end.line]
        return Site(end, end, self.indent(node))

    def replacing(self, node):
        return Site(self.before(node).start, self.after(node).end, self.indent(node))


def _finder(find):
    """Lets an edit's `find` work on a _Tree; a file that is not valid Python has no site."""
    def sites(text):
        try:
            return find(_Tree(text))
        except cst.ParserSyntaxError:
            return []
    return sites


def _config_field(tree):
    """After the docstring of TransformerConfig.recompute_modules."""
    sites = []
    for config in tree.find(m.ClassDef(name=m.Name("TransformerConfig"))):
        body = config.body.body
        for field, docstring in zip(body, body[1:]):
            if m.matches(field, m.SimpleStatementLine(
                    body=[m.AnnAssign(target=m.Name("recompute_modules"))])):
                is_docstring = m.matches(docstring, m.SimpleStatementLine(
                    body=[m.Expr(m.SimpleString() | m.ConcatenatedString())]))
                sites.append(tree.after(docstring if is_docstring else field))
    return sites


def _config_checks(tree):
    """Before TransformerConfig.__post_init__ looks at recompute_granularity."""
    return [tree.before(statement)
            for config in tree.find(m.ClassDef(name=m.Name("TransformerConfig")))
            for init in tree.find(m.FunctionDef(name=m.Name("__post_init__")), config)
            for statement in init.body.body
            if m.matches(statement, m.If(test=m.Comparison(
                left=m.Attribute(m.Name("self"), m.Name("recompute_granularity")),
                comparisons=[m.ComparisonTarget(m.IsNot(), m.Name("None"))])))]


def _layer_flag(tree):
    """The line `self.recompute_mlp = True` under `if "mlp" in self.config.recompute_modules`."""
    return [tree.replacing(line)
            for branch in tree.find(m.If(test=m.Comparison(
                left=m.SimpleString('"mlp"') | m.SimpleString("'mlp'"),
                comparisons=[m.ComparisonTarget(m.In(), m.Attribute(
                    m.Attribute(m.Name("self"), m.Name("config")), m.Name("recompute_modules")))])))
            for line in tree.find(m.SimpleStatementLine(body=[m.Assign(
                targets=[m.AssignTarget(m.Attribute(m.Name("self"), m.Name("recompute_mlp")))],
                value=m.Name("True"))]), branch)]


def _cli_argument(tree):
    """After group.add_argument('--recompute-modules', ...)."""
    return [tree.after(line)
            for line in tree.find(m.SimpleStatementLine(body=[m.Expr(m.Call(
                func=m.Attribute(attr=m.Name("add_argument")),
                args=[m.Arg(m.SimpleString("'--recompute-modules'")
                            | m.SimpleString('"--recompute-modules"')), m.ZeroOrMore()]))]))]


def _cli_checks(tree):
    """Before validate_args' own `if args.recompute_granularity == 'selective'`."""
    return [tree.before(statement)
            for function in tree.find(m.FunctionDef(
                name=m.Name("validate_args") | m.Name("_validate_args")))
            for statement in function.body.body
            if m.matches(statement, m.If(test=m.Comparison(
                left=m.Attribute(m.Name("args"), m.Name("recompute_granularity")),
                comparisons=[m.ComparisonTarget(
                    m.Equal(), m.SimpleString("'selective'") | m.SimpleString('"selective"'))])))]


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

_CLI_ARGUMENT = Edit("the option --recompute-mlp-num-layers",
                     "add_argument('--recompute-modules', ...)", _finder(_cli_argument), CLI_ARGUMENT)
_CLI_CHECKS = Edit("the option's checks",
                   "if args.recompute_granularity == 'selective' in validate_args",
                   _finder(_cli_checks), _checks("args"))


def _files(tree):
    core = "megatron/core/transformer/"
    arguments = "megatron/training/arguments.py"
    edits = [_CLI_ARGUMENT, _CLI_CHECKS]
    try:
        with open(os.path.join(tree, arguments), encoding="utf-8", newline="") as file:
            # Since 2026 Megatron-LM makes its options from TransformerConfig's fields.
            if "ArgumentGroupFactory(TransformerConfig" in file.read():
                edits = [_CLI_CHECKS]
    except FileNotFoundError:
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


PATCH = Patch("Megatron-LM", _files)

if __name__ == "__main__":
    sys.exit(main(PATCH))
