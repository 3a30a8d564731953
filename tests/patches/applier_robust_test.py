"""What a patched tree goes through: formatters, CRLF, links, other users, two at once, kills, upgrades."""
import os
import random
import signal
import subprocess
import sys

import pytest

from applier_test import LAYER, call, contents, tree  # noqa: F401
from conftest import ROOT
from infinitrain_test import TREE as INFINITRAIN
import patch_megatron as patch

import applier

MEGATRON = os.path.join(ROOT, "patches", "megatron", "patch_megatron.py")
CORE = "megatron/core/transformer/"
LAYER_FILE, CONFIG_FILE = CORE + "transformer_layer.py", CORE + "transformer_config.py"


def program(*arguments, script=MEGATRON, **environment):
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, **environment})


def rewrite(path, before, after):
    text = path.read_bytes().decode()
    assert before in text
    path.write_bytes(text.replace(before, after, 1).encode())


@pytest.fixture
def infinitrain(tmp_path):
    for path, text in INFINITRAIN.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    sys.path.append(os.path.join(ROOT, "patches", "infinitrain"))
    import patch_infinitrain
    return tmp_path, patch_infinitrain.PATCH


@pytest.mark.parametrize("before, after", [
    ("    logger, logging.INFO, f\"Layer", "    logger,\n                        logging.INFO, f\"Layer"),
    ("or self.layer_number <=", "or self.layer_number <"),
    (" begin: the first N", " started: the first N"),
    ("] end\n", "]\n"),
])
def test_changed_lines_of_ours_are_named_and_nothing_is_touched(tree, capsys, before, after):
    call(tree, "apply")
    rewrite(tree / LAYER_FILE, before, after)
    changed = contents(tree)
    for command in ("revert", "apply"):
        capsys.readouterr()
        assert call(tree, command) == 1
        error = capsys.readouterr().err
        assert f"{LAYER_FILE}: line" in error and "Nothing was written" in error
        assert contents(tree) == changed
    call(tree, "status")
    assert capsys.readouterr().out.endswith("changed since it was written: apply and revert refuse\n")


def test_force_takes_out_what_stands_between_the_marks(tree):
    before = contents(tree)
    call(tree, "apply")
    rewrite(tree / LAYER_FILE, "or self.layer_number <=", "or self.layer_number <")
    assert call(tree, "revert", "--force") == 0
    assert contents(tree) == before


def test_a_changed_line_is_never_doubled(infinitrain, capsys):
    tree, host = infinitrain
    applier.main(host, ["apply", str(tree)])
    function = tree / "infini_train/src/autograd/function.cc"
    rewrite(function, "recompute::BeforeForward(compute_inputs);",
            "recompute::BeforeForward(compute_inputs); // mine")
    for command in ("revert", "apply"):
        assert applier.main(host, [command, str(tree)]) == 1
        assert "infini_train/src/autograd/function.cc: lines " in capsys.readouterr().err
    assert function.read_text().count("BeforeForward") == 1


@pytest.mark.parametrize("last_newline", [True, False])
def test_crlf_files_stay_crlf_and_come_back_to_the_byte(tree, last_newline):
    for path in (LAYER_FILE, CONFIG_FILE, "megatron/training/arguments.py"):
        text = (tree / path).read_text().replace("\n", "\r\n")
        (tree / path).write_bytes((text if last_newline else text.rstrip("\r\n")).encode())
    before = contents(tree)
    assert call(tree, "apply") == 0
    applied = contents(tree)
    for path, content in applied.items():
        assert content.count(b"\n") == content.count(b"\r\n") > before[path].count(b"\n")
    assert call(tree, "revert") == 0
    assert contents(tree) == before


def test_a_site_at_the_end_of_a_file_without_newline(tree):
    (tree / LAYER_FILE).write_text(LAYER.replace("        self.after = 1\n", "").rstrip("\n"))
    before = contents(tree)
    assert call(tree, "apply") == 0
    applied = contents(tree)
    compile(applied[LAYER_FILE], "x", "exec")
    assert not applied[LAYER_FILE].endswith(b"\n") and call(tree, "apply") == 0
    assert contents(tree) == applied
    assert call(tree, "revert") == 0
    assert contents(tree) == before


def test_comments_form_feeds_and_a_bom_on_the_way(tree):
    (tree / LAYER_FILE).write_bytes(b"\xef\xbb\xbf" + LAYER.replace(
        "class Layer:", "\f\nclass Layer:").replace(
        "recompute_mlp = True", "recompute_mlp = True  # upstream's").encode())
    before = contents(tree)
    assert call(tree, "apply") == 0
    applied = contents(tree)[LAYER_FILE]
    compile(applied, "x", "exec")
    assert b"            # Apply MLP recompute only" in applied
    assert call(tree, "revert") == 0
    assert contents(tree) == before


def test_links_stay_links(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "layer.py"
    os.rename(tree / LAYER_FILE, elsewhere)
    (tree / LAYER_FILE).symlink_to(elsewhere)
    assert call(tree, "apply") == 0
    assert (tree / LAYER_FILE).is_symlink() and "recompute_mlp_num_layers" in elsewhere.read_text()
    assert call(tree, "revert") == 0
    assert (tree / LAYER_FILE).is_symlink() and elsewhere.read_text() == LAYER


def test_bad_input_is_one_sentence(tree):
    cases = {"/etc/passwd": "/etc/passwd: a file; give the folder of Megatron-LM",
             str(tree / "nowhere"): "nowhere: not found; give the folder of Megatron-LM"}
    for folder, message in cases.items():
        for command in ("apply", "revert", "status"):
            done = program(command, folder)
            assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    (tree / LAYER_FILE).write_bytes(LAYER.encode() + b"# caf\xe9\n")
    before = contents(tree)
    done = program("apply", tree)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{LAYER_FILE}: line {LAYER.count(chr(10)) + 1} is not UTF-8 (byte 0xe9)" in done.stderr
    assert contents(tree) == before


def test_a_folder_one_level_off_and_none_at_all(tree, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    os.rename(tree, above / "tree")
    tree = above / "tree"
    before = contents(tree)
    for folder in (tree / "megatron", tree / "megatron" / "core", above):
        assert program("apply", folder).returncode == 0, folder
        assert program("revert", folder).returncode == 0
        assert contents(tree) == before
    (tree / "megatron" / "core" / "__init__.py").write_text("")
    before = contents(tree)
    assert program("apply", PYTHONPATH=str(tree)).returncode == 0
    assert contents(tree) != before
    assert program("revert", PYTHONPATH=str(tree)).returncode == 0
    assert contents(tree) == before
    empty = tmp_path_factory.mktemp("empty")
    none = subprocess.run([sys.executable, "-S", MEGATRON, "apply"], capture_output=True, text=True,
                          cwd=empty)
    assert none.returncode == 1 and "give the folder of Megatron-LM: none can be imported" in none.stderr


def test_nothing_but_python_is_needed(tree):
    done = subprocess.run([sys.executable, "-S", "-I", MEGATRON, "apply", str(tree)], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="root gives files away")
def test_root_leaves_files_to_their_owner(infinitrain):
    tree, host = infinitrain
    everything = [tree, *tree.rglob("*")]
    for path in everything:
        os.chown(path, 65534, 65534)
    host.run(str(tree), revert=False)
    assert {(p.stat().st_uid, p.stat().st_gid) for p in tree.rglob("*")} == {(65534, 65534)}
    host.run(str(tree), revert=True)
    assert {p.stat().st_uid for p in tree.rglob("*")} == {65534}


def test_a_newer_recoup_updates_and_removes_what_an_older_one_applied(infinitrain, monkeypatch, capsys):
    tree, host = infinitrain
    before = contents(tree)
    files = host.files

    def older(folder):
        result = []
        for file in files(folder):
            if file.content is not None:
                file = applier.FilePatch(file.path, content=file.content + b"// of old\n")
            edits = [applier.Edit(e.name, e.wanted, e.find, e.lines + "// of old\n") for e in file.edits]
            result.append(applier.FilePatch(file.path, edits, file.content, file.optional))
        return [*result, applier.FilePatch("recoup/old.h", content=b"// gone since\n")]

    old = applier.Patch("InfiniTrain", older)
    monkeypatch.setattr(applier, "version", lambda: "0.0.9")
    old.run(str(tree), revert=False)
    applier.main(host, ["status", str(tree)])
    out = capsys.readouterr().out
    assert "applied      0.0.9     recoup/plugin.h: file" in out and "recoup/old.h" in out
    monkeypatch.undo()
    fresh = contents(tree)
    host.run(str(tree), revert=True)
    assert contents(tree) == before
    for path, content in fresh.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    host.run(str(tree), revert=False)
    updated = contents(tree)
    assert not any(b"of old" in c or b"0.0.9" in c for c in updated.values())
    assert "recoup/old.h" not in updated
    host.run(str(tree), revert=True)
    assert contents(tree) == before


def test_lines_without_marks_are_taken_over(tree, capsys):
    """What versions before the marks wrote: the same lines with nothing around them."""
    before = contents(tree)
    for file in patch.PATCH.files(str(tree)):
        text = (tree / file.path).read_text()
        for edit in file.legacy or file.edits:
            site, = edit.find(text)
            text = text[:site.start] + edit.indented(edit.lines, site.indent) + text[site.end:]
        (tree / file.path).write_text(text)
    old = contents(tree)
    call(tree, "status")
    out = capsys.readouterr().out
    assert out.endswith("\napplied\n") or out.endswith("\npartly applied\n")
    assert "unmarked" in out
    assert call(tree, "revert") == 0
    assert contents(tree) == before
    for path, content in old.items():
        (tree / path).write_bytes(content)
    assert call(tree, "apply") == 0
    assert b" begin: " in contents(tree)[LAYER_FILE] and call(tree, "revert") == 0
    assert contents(tree) == before
    for path, content in old.items():
        (tree / path).write_bytes(content)
    rewrite(tree / LAYER_FILE, "or self.layer_number <=", "or self.layer_number <")
    changed = contents(tree)
    capsys.readouterr()
    assert call(tree, "revert") == 1 and call(tree, "apply") == 1
    at = changed[LAYER_FILE].decode().split("\n").index(
        "                        or self.layer_number < self.config.recompute_mlp_num_layers") + 1
    assert f"{LAYER_FILE}: lines " in (error := capsys.readouterr().err) and f" {at}" in error
    assert contents(tree) == changed


def test_what_the_added_sources_need_of_the_host_is_checked(infinitrain, capsys):
    tree, host = infinitrain
    header = tree / "infini_train/include/autograd/function.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("class Function {};\n")
    before = contents(tree)
    assert applier.main(host, ["apply", str(tree)]) == 1
    assert "has no FunctionCtx::SavedTensorHooks" in capsys.readouterr().err
    assert contents(tree) == before
    header.write_text("struct SavedTensorHooks {};\n")
    assert applier.main(host, ["apply", str(tree)]) == 0


def test_two_at_once_wait_for_each_other(tree):
    plain = contents(tree)
    call(tree, "apply")
    applied = contents(tree)
    for first, second in [("revert", "revert"), ("apply", "revert"), ("apply", "apply")] * 2:
        pair = [subprocess.Popen([sys.executable, MEGATRON, command, str(tree)], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE) for command in (first, second)]
        for process in pair:
            out, error = process.communicate()
            assert process.returncode == 0, error
        assert contents(tree) in (plain, applied)
        if first == second:
            assert contents(tree) == (plain if first == "revert" else applied)


# Kills itself at the N-th call that changes a file system.
_KILLED = """
import os, signal, sys
sys.argv = sys.argv[1:]
left = int(sys.argv.pop(0))
def counted(call):
    def wrapped(*arguments, **keywords):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **keywords)
    return wrapped
for name in ("replace", "mkdir", "remove", "rmdir", "chmod", "open", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import patch_infinitrain
sys.exit(patch_infinitrain.main(patch_infinitrain.PATCH, sys.argv[1:]))
"""


def test_fifty_kills(infinitrain):
    tree, host = infinitrain
    plain = contents(tree)
    host.run(str(tree), revert=False)
    applied = contents(tree)
    host.run(str(tree), revert=True)
    folders = {str(p) for p in tree.rglob("*") if p.is_dir()}
    script = os.path.join(ROOT, "patches", "infinitrain", "patch_infinitrain.py")
    chance, killed = random.Random(14), 0
    for attempt in range(50):
        command = ("apply", "revert")[attempt % 2]
        if command == "revert":
            host.run(str(tree), revert=False)
        done = subprocess.run([sys.executable, "-c", _KILLED, str(chance.randint(1, 40)), script, command,
                               str(tree)], capture_output=True)
        killed += done.returncode == -signal.SIGKILL
        after = ("revert", "apply")[chance.randint(0, 1)]
        host.run(str(tree), revert=after == "revert")
        assert contents(tree) == (plain if after == "revert" else applied)
        host.run(str(tree), revert=True)
        assert contents(tree) == plain
        assert {str(p) for p in tree.rglob("*") if p.is_dir()} == folders
    assert killed > 25
