"""The patches' shared machinery, on trees of our own writing."""
import os
import stat

import pytest

from applier import PatchError, main
from patch_megatron import PATCH

CONFIG = '''"""A config."""
from typing import List, Optional


class TransformerConfig:  # as small as can be

    recompute_modules: Optional[List[str]] = None
    """Which modules."""

    other: int = 1

    def __post_init__(self):
        assert self.other

        if self.recompute_granularity is not None:  # comment stays
            pass
'''
LAYER = '''import logging


class Layer:
    def __init__(self):
        if self.config.recompute_granularity == 'selective':
            if "mlp" in self.config.recompute_modules:
                if not self.is_moe_layer:
                    self.recompute_mlp = True
        self.after = 1
'''
ARGUMENTS = '''def validate_args(args, defaults={}):
    if args.recompute_granularity == 'selective':
        assert args.recompute_method is None


def _add_training_args(parser):
    group = parser.add_argument_group(title='training')
    group.add_argument('--recompute-modules', nargs='*', type=str, default=None,
                       help='modules')
    return parser
'''


@pytest.fixture
def tree(tmp_path):
    core = tmp_path / "megatron" / "core" / "transformer"
    core.mkdir(parents=True)
    (core / "transformer_config.py").write_text(CONFIG)
    (core / "transformer_layer.py").write_text(LAYER)
    (tmp_path / "megatron" / "training").mkdir()
    (tmp_path / "megatron" / "training" / "arguments.py").write_text(ARGUMENTS)
    return tmp_path


def contents(tree):
    return {os.path.relpath(os.path.join(folder, f), tree): open(os.path.join(folder, f), "rb").read()
            for folder, _, files in os.walk(tree) for f in files}


def call(tree, command, *flags):
    return main(PATCH, [command, str(tree), *flags])


def test_apply_revert_status(tree, capsys):
    before = contents(tree)
    assert call(tree, "status") == 0
    assert capsys.readouterr().out.endswith("\nnot applied\n")
    assert call(tree, "apply") == 0
    applied = contents(tree)
    assert applied.keys() == before.keys() and applied != before
    for content in applied.values():
        compile(content, "x", "exec")
    call(tree, "status")
    assert capsys.readouterr().out.endswith("\napplied\n")
    assert call(tree, "apply") == 0  # again
    assert contents(tree) == applied
    assert call(tree, "revert") == 0
    assert contents(tree) == before
    assert call(tree, "revert") == 0
    assert contents(tree) == before


def test_dry_run_prints_the_diff_and_writes_nothing(tree, capsys):
    before = contents(tree)
    assert call(tree, "apply", "--dry-run") == 0
    out = capsys.readouterr().out
    assert contents(tree) == before
    assert "+++ b/megatron/core/transformer/transformer_layer.py" in out
    assert "-                    self.recompute_mlp = True\n" in out
    assert "+    group.add_argument('--recompute-mlp-num-layers', type=int, default=None,\n" in out


def test_an_unknown_site_names_what_was_searched_and_writes_nothing(tree, capsys):
    layer = tree / "megatron" / "core" / "transformer" / "transformer_layer.py"
    layer.write_text(LAYER.replace('"mlp" in', '"mlp" not in'))
    before = contents(tree)
    assert call(tree, "apply") == 1
    error = capsys.readouterr().err
    assert 'searched for self.recompute_mlp = True under if "mlp" in self.config.recompute_modules' in error
    assert "found it 0 times" in error and "Nothing was written" in error
    assert contents(tree) == before  # though the first file's sites are there
    layer.write_text("def broken(:\n")
    assert call(tree, "apply") == 1


def test_no_tree_is_a_clear_error(tmp_path, capsys):
    assert call(tmp_path, "apply") == 1
    assert "transformer_config.py: not found; give the folder of Megatron-LM" in capsys.readouterr().err


def test_revert_keeps_what_others_changed(tree):
    call(tree, "apply")
    layer = tree / "megatron" / "core" / "transformer" / "transformer_layer.py"
    layer.write_text(layer.read_text() + "# a user's line\n")
    call(tree, "revert")
    assert layer.read_text() == LAYER + "# a user's line\n"


def test_partly_applied_trees_are_completed(tree, capsys):
    call(tree, "apply")
    whole = contents(tree)
    (tree / "megatron" / "core" / "transformer" / "transformer_layer.py").write_text(LAYER)
    call(tree, "status")
    assert capsys.readouterr().out.endswith("\npartly applied\n")
    call(tree, "apply")
    assert contents(tree) == whole


def test_a_failed_write_restores_the_files_already_written(tree, monkeypatch):
    before = contents(tree)
    changes = PATCH.change(str(tree), revert=False)
    assert len(changes) == 3
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(PatchError, match="disk full"):
        PATCH.write(str(tree), changes)
    assert contents(tree) == before


def test_modes_and_line_endings_stay(tree):
    layer = tree / "megatron" / "core" / "transformer" / "transformer_layer.py"
    os.chmod(layer, 0o755)
    call(tree, "apply")
    assert stat.S_IMODE(layer.stat().st_mode) == 0o755


def test_arguments_of_2026_come_from_the_config_class(tree):
    arguments = tree / "megatron" / "training" / "arguments.py"
    arguments.write_text("factory = ArgumentGroupFactory(TransformerConfig, exclude=[])\n\n\n" +
                         ARGUMENTS.split("\n\n\n")[0] + "\n")
    before = contents(tree)
    assert call(tree, "apply") == 0
    assert b"add_argument" not in contents(tree)["megatron/training/arguments.py"]
    assert b"must be >= 1" in contents(tree)["megatron/training/arguments.py"]
    call(tree, "revert")
    assert contents(tree) == before


def test_the_patched_arguments_parse_and_validate(tree):
    import argparse

    call(tree, "apply")
    scope = {}
    exec((tree / "megatron" / "training" / "arguments.py").read_text(), scope)
    parser = scope["_add_training_args"](argparse.ArgumentParser())
    args = parser.parse_args(["--recompute-modules", "mlp", "--recompute-mlp-num-layers", "12"])
    assert args.recompute_mlp_num_layers == 12
    args.recompute_method = None
    args.recompute_granularity = "selective"
    scope["validate_args"](args)
    for field, value, message in [
            ("recompute_granularity", "full", "requires --recompute-granularity selective"),
            ("recompute_modules", None, 'requires "mlp" in --recompute-modules'),
            ("recompute_modules", ["core_attn"], 'requires "mlp" in --recompute-modules'),
            ("recompute_mlp_num_layers", 0, "must be >= 1")]:
        wrong = argparse.Namespace(**{**vars(args), field: value})
        with pytest.raises(ValueError, match=message):
            scope["validate_args"](wrong)
