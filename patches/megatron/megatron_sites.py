"""Where the patch's edits go in Megatron's sources, found in the syntax tree."""
import ast

from applier import Site


class Tree:
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


def finder(find):
    """Lets an edit's `find` work on a Tree; a file that is not valid Python has no site."""
    def sites(text):
        try:
            return find(Tree(text))
        except (SyntaxError, ValueError):
            return []
    return sites


def matches(node, source):
    """Whether a node is this expression, however it is written."""
    return node is not None and ast.dump(node) == ast.dump(ast.parse(source, mode="eval").body)


def config_field(tree):
    """After the docstring of TransformerConfig.recompute_modules."""
    sites = []
    for config in tree.of(ast.ClassDef, name="TransformerConfig"):
        for field, following in zip(config.body, config.body[1:]):
            if isinstance(field, ast.AnnAssign) and is_name(field.target, "recompute_modules"):
                documented = isinstance(following, ast.Expr) and isinstance(
                    getattr(following.value, "value", None), str)
                sites.append(tree.after(following if documented else field))
    return sites


def is_name(node, name):
    return isinstance(node, ast.Name) and node.id == name


def config_checks(tree):
    """Before TransformerConfig.__post_init__ looks at recompute_granularity."""
    return [tree.before(statement)
            for config in tree.of(ast.ClassDef, name="TransformerConfig")
            for init in tree.of(ast.FunctionDef, config, name="__post_init__")
            for statement in init.body if isinstance(statement, ast.If)
            and matches(statement.test, "self.recompute_granularity is not None")]


def layer_flag(tree):
    """The line `self.recompute_mlp = True` under `if "mlp" in self.config.recompute_modules`."""
    return [tree.replacing(line)
            for branch in tree.of(ast.If) if matches(branch.test, "'mlp' in self.config.recompute_modules")
            for line in tree.of(ast.Assign, branch)
            if ast.unparse(line) == "self.recompute_mlp = True"]


def cli_argument(tree):
    """After group.add_argument('--recompute-modules', ...)."""
    return [tree.after(line) for line in tree.of(ast.Expr)
            if isinstance(line.value, ast.Call) and isinstance(line.value.func, ast.Attribute)
            and line.value.func.attr == "add_argument" and line.value.args
            and matches(line.value.args[0], "'--recompute-modules'")]


def cli_checks(tree):
    """Before validate_args' own `if args.recompute_granularity == 'selective'`."""
    return [tree.before(statement) for function in tree.of(ast.FunctionDef)
            if function.name in ("validate_args", "_validate_args")
            for statement in function.body if isinstance(statement, ast.If)
            and matches(statement.test, "args.recompute_granularity == 'selective'")]


def layer_init(tree):
    """TransformerLayer.__init__'s `super().__init__(config=...)`."""
    return [tree.before(statement)
            for layer in tree.of(ast.ClassDef, name="TransformerLayer")
            for init in tree.of(ast.FunctionDef, layer, name="__init__")
            for statement in init.body if isinstance(statement, ast.Expr)
            and ast.unparse(statement).startswith("super().__init__(config=config")]


def yaml_loop(tree):
    """The loop over a dataclass's fields in core_config_from_args."""
    return [tree.before(statement)
            for function in tree.of(ast.FunctionDef, name="core_config_from_args")
            for statement in function.body if isinstance(statement, ast.For)
            and ast.unparse(statement.iter) == "dataclasses.fields(dataclass)"]
