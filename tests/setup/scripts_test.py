"""The scripts of tests/: what they refuse, and the repository's own form."""
import os
import re
import shutil
import subprocess

import pytest

from conftest import ROOT


def script(name, *arguments, **environment):
    return subprocess.run([os.path.join(ROOT, "tests", name), *arguments], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment})


def test_what_takes_long_is_listed_by_name():
    done = script("all.sh")
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        assert re.match(r"\w+ +\d+ min  \S", line), line


def test_no_such_name():
    done = script("all.sh", "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith('recoup: tests/all.sh has no "nothing"; there are:\naddress')


def test_every_listed_command_exists():
    with open(os.path.join(ROOT, "tests", "all.sh")) as file:
        paths = re.findall(r"\|[^|]*?(tests/[\w/.]+)[^|]*\|", file.read())
    assert len(paths) > 4
    for path in paths:
        assert os.path.exists(os.path.join(ROOT, path)), path


@pytest.mark.parametrize("version", ["2", "latest", "2.11.x"])
def test_no_such_version(version):
    done = script("torch_versions.sh", version)
    assert done.returncode == 1
    assert done.stderr.startswith(f"recoup: {version} is no version")


def clang_format():
    """The version that the sources were formatted with: others differ in a line or two."""
    program = next((p for p in ("clang-format-14", "clang-format") if shutil.which(p)), None)
    if program is None:
        pytest.skip("clang-format is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if "version 14." not in version:
        pytest.skip(f"the sources are formatted by clang-format 14; here is {version.strip()}")
    return program


def test_sources_are_formatted():
    program = clang_format()
    if not os.path.exists(os.path.join(ROOT, ".git")):
        pytest.skip("no git repository")
    files = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "ls-files", "*.cc", "*.h", "*.hpp"],
                           cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    # Another project's style; the contract's landed versions stay as they were.
    files = [f for f in files if not f.startswith(("patches/infinitrain/sources/", "tests/contract/plugin_"))]
    assert len(files) > 30
    done = subprocess.run([program, "--dry-run", "-Werror", *files], cwd=ROOT, capture_output=True, text=True)
    names = sorted(set(re.findall(r"^(\S+?):\d+:", done.stderr, re.M)))
    assert done.returncode == 0, f"clang-format -i {' '.join(names)}"
