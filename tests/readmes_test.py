"""Every code block of every README is run, or says why not.

  ```bash            run from the repository's root, with the test environment's Python in PATH
  ```python          run by that Python after the README's earlier ones, with the package `recoup` importable
  ```yaml            read by recoup's own configuration parser
  ```cpp, c, cmake   preceded by <!-- from: FILE -->: its lines stand in FILE, in this order, and FILE is
                     compiled or run by another test
  ```text, ```       output: not code

<!-- run by: FILE --> before a block: that test takes the block from the README and runs it.
<!-- not run: why --> before a block leaves it out; there may be few of those.
"""
import os
import re
import subprocess
import sys
import tempfile

import pytest

from conftest import BUILD, ROOT

MOST_NOT_RUN = 15
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMENT = re.compile(r"<!-- (not run|run by|from): ((?:(?!-->).)+?) -->\s*\Z", re.S)


def readmes():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "*README.md"], capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else [
        os.path.relpath(os.path.join(folder, f), ROOT) for folder, _, files in os.walk(ROOT) for f in files
        if f == "README.md" and not os.path.relpath(folder, ROOT).startswith("build")]


def blocks():
    for readme in readmes():
        with open(os.path.join(ROOT, readme)) as file:
            text = file.read()
        earlier = ""  # the Python before
        for match in FENCE.finditer(text):
            language, code = match.groups()
            if language in ("", "text"):
                continue
            if language == "python":
                code = earlier = earlier + code
            comment = COMMENT.search(text[:match.start()])
            line = text.count("\n", 0, match.start()) + 1
            yield pytest.param(language, code, comment.groups() if comment else (None, None), id=f"{readme}:{line}")


BLOCKS = list(blocks())


def run(command, code=None):
    environment = {**os.environ, "RECOUP_BUILD": BUILD,
                   "PYTHONPATH": os.path.join(ROOT, "plugin", "python"),
                   "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    return subprocess.run(command, input=code, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("language, code, comment", BLOCKS)
def test_block(language, code, comment):
    kind, what = comment
    if kind == "not run":
        pytest.skip(what)
    if kind == "run by":
        with open(os.path.join(ROOT, what)) as file:
            assert "README" in file.read(), f"{what} reads no README"
        return
    if kind == "from":
        with open(os.path.join(ROOT, what)) as file:
            rest = iter([line.strip() for line in file])
        for line in filter(None, map(str.strip, code.splitlines())):
            assert line in rest, f"{what} does not have, at this place, the line: {line}"
        return
    if language == "yaml":
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(code)
            file.flush()
            done = run([os.path.join(BUILD, "recoup"), "check", file.name, "--layers", "24"])
    elif language in ("bash", "sh"):
        done = run(["bash", "-euo", "pipefail"], code)
    elif language == "python":
        done = run([sys.executable, "-"], code)
    else:
        pytest.fail(f"a {language} block needs <!-- from: FILE --> or <!-- not run: why -->")
    assert done.returncode == 0, done.stdout + done.stderr


def test_few_blocks_are_not_run():
    left_out = [p.id for p in BLOCKS if p.values[2][0] == "not run"]
    print(f"{len(BLOCKS)} code blocks, {len(left_out)} not run: {', '.join(left_out)}")
    assert len(left_out) <= MOST_NOT_RUN


def test_links_and_pictures_lead_somewhere():
    """A relative link names a file of the repository; #x a heading of it."""
    wrong, links = [], 0
    for readme in readmes():
        with open(os.path.join(ROOT, readme)) as file:
            text = FENCE.sub("", file.read())
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            links += 1
            path, _, heading = target.partition("#")
            file = os.path.normpath(os.path.join(ROOT, os.path.dirname(readme), path)) if path else os.path.join(ROOT, readme)
            if not os.path.exists(file):
                wrong.append(f"{readme}: {target}")
            elif heading:
                with open(file) as other:
                    names = [re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-")
                             for h in re.findall(r"^#+ (.*)$", other.read(), re.M)]
                if heading not in names:
                    wrong.append(f"{readme}: {target}, whose headings are {names}")
    assert links > 20 and not wrong, wrong
