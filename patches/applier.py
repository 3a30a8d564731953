"""Applies, reverts and reports edits to somebody else's source tree.

A patch is a list of edits in files of that tree. An edit finds its site by meaning (a syntax tree, or
a pattern of the lines around it), never by line number, and puts lines of ours there. All state is in
the tree itself: an edit knows how to find both its site and its own lines, so `apply` does nothing
where it was applied before, and `revert` takes out exactly what `apply` put in, also where the rest of
the file has changed since. Either every file of a patch is written or none is.
"""
import argparse
import difflib
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Callable, List, NamedTuple, Optional


class PatchError(Exception):
    """A complete sentence for the user; nothing was written."""


class Site(NamedTuple):
    """Where an edit goes: the span of text it replaces (empty: it inserts), and the indentation."""

    start: int
    end: int
    indent: str


@dataclass(frozen=True)
class Edit:
    """One edit of one file."""

    name: str  # what it adds, for messages
    wanted: str  # what its site looks like, for the error where it is not found
    find: Callable[[str], List[Site]]  # the sites in the unedited text; must be one
    lines: str  # our lines, indented from column 0, with a newline at the end
    replaced: str = ""  # the line that ours replace, likewise; empty for an insertion

    def indented(self, text: str, indent: str) -> str:
        return "".join(indent + line if line.strip() else line for line in text.splitlines(True))

    def applied(self, text: str) -> Optional[Site]:
        """Where our lines stand, at any indentation."""
        first = self.lines.splitlines()[0]
        for match in re.finditer(r"^([ \t]*)" + re.escape(first) + "$", text, re.MULTILINE):
            ours = self.indented(self.lines, match.group(1))
            if text.startswith(ours, match.start()):
                return Site(match.start(), match.start() + len(ours), match.group(1))
        return None

    def apply(self, text: str, path: str) -> str:
        if self.applied(text):
            return text
        sites = self.find(text)
        if len(sites) != 1:
            raise PatchError(f"{path}: {self.name}: searched for {self.wanted} and found it "
                             f"{len(sites)} times; this version is not known. Nothing was written.")
        site = sites[0]
        return text[:site.start] + self.indented(self.lines, site.indent) + text[site.end:]

    def revert(self, text: str) -> str:
        site = self.applied(text)
        if site is None:
            return text
        return text[:site.start] + self.indented(self.replaced, site.indent) + text[site.end:]


@dataclass(frozen=True)
class FilePatch:
    """The edits of one file, or a file of ours that is added whole (`content`)."""

    path: str  # relative to the tree
    edits: List[Edit] = field(default_factory=list)
    content: Optional[bytes] = None
    optional: bool = False  # whether the tree may lack the file


class Patch:
    """What turns one kind of tree into a host of recoup.

    `files(tree)` lists the file patches for that tree, or raises PatchError where it is no such tree.
    """

    def __init__(self, name: str, files: Callable[[str], List[FilePatch]]):
        self.name = name
        self.files = files

    def _read(self, tree: str, file: FilePatch) -> Optional[str]:
        try:
            with open(os.path.join(tree, file.path), encoding="utf-8", newline="") as f:
                return f.read()
        except FileNotFoundError:
            return None

    def _present(self, tree: str):
        """The file patches that concern this tree, with the files' text (None: not there)."""
        present = []
        for file in self.files(tree):
            text = self._read(tree, file)
            if text is None and file.content is None:
                if file.optional:
                    continue
                raise PatchError(f"{os.path.join(tree, file.path)}: not found; give the folder of "
                                 f"{self.name}. Nothing was written.")
            present.append((file, text))
        return present

    def status(self, tree: str) -> dict:
        """{(path, edit): whether it is applied}"""
        result = {}
        for file, text in self._present(tree):
            if file.content is not None:
                result[file.path, "file"] = text is not None and text.encode() == file.content
            for edit in file.edits:
                result[file.path, edit.name] = edit.applied(text) is not None
        return result

    def change(self, tree: str, revert: bool) -> dict:
        """{path: (text before, text after)}, None for a file that is not there; writes nothing."""
        changes = {}
        for file, before in self._present(tree):
            after = before
            if file.content is not None:
                if before is not None and before.encode() != file.content:
                    raise PatchError(f"{file.path}: there is another file of this name; move it away "
                                     "first. Nothing was written.")
                after = None if revert else file.content.decode()
            for edit in reversed(file.edits) if revert else file.edits:
                after = edit.revert(after) if revert else edit.apply(after, file.path)
            if after != before:
                changes[file.path] = (before, after)
        return changes

    def write(self, tree: str, changes: dict) -> None:
        """Writes all changes; where one fails, the files already written are restored."""
        done = []
        try:
            for path, (before, after) in changes.items():
                _replace(os.path.join(tree, path), after)
                done.append((path, before))
        except OSError as error:
            for path, before in reversed(done):
                _replace(os.path.join(tree, path), before)
            raise PatchError(f"{error}. Nothing was written.") from error


def _replace(path: str, text: Optional[str]) -> None:
    """Makes `text` the content of `path` at once; None removes it and folders it leaves empty."""
    folder = os.path.dirname(path)
    if text is None:
        os.remove(path)
        while not os.listdir(folder):
            os.rmdir(folder)
            folder = os.path.dirname(folder)
        return
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as f:
            f.write(text)
        if os.path.exists(path):
            os.chmod(temporary, os.stat(path).st_mode)
        else:
            os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def diff(changes: dict) -> str:
    lines = []
    for path, (before, after) in changes.items():
        lines += difflib.unified_diff((before or "").splitlines(True), (after or "").splitlines(True),
                                      f"a/{path}" if before is not None else "/dev/null",
                                      f"b/{path}" if after is not None else "/dev/null", n=3)
    return "".join(lines)


def main(patch: Patch, arguments=None) -> int:
    """The command line of a patch: apply, revert and status."""
    parser = argparse.ArgumentParser(description=f"Makes {patch.name} a host of recoup, and back.")
    parser.add_argument("command", choices=["apply", "revert", "status"])
    parser.add_argument("tree", help=f"the folder of {patch.name}")
    parser.add_argument("--dry-run", action="store_true", help="print the diff, write nothing")
    options = parser.parse_args(arguments)
    try:
        if options.command == "status":
            states = patch.status(options.tree)
            for (path, edit), applied in states.items():
                print(f"{'applied    ' if applied else 'not applied'}  {path}: {edit}")
            kinds = set(states.values())
            print({frozenset([True]): "applied", frozenset([False]): "not applied"}.get(
                frozenset(kinds), "partly applied"))
            return 0
        changes = patch.change(options.tree, revert=options.command == "revert")
        if options.dry_run:
            sys.stdout.write(diff(changes))
            return 0
        patch.write(options.tree, changes)
        for path in changes:
            print(f"{'reverted' if options.command == 'revert' else 'patched'}  {path}")
        if not changes:
            print("nothing to do")
        return 0
    except PatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
