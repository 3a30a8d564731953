"""Applies, reverts and reports edits to somebody else's source tree.

A patch is a list of edits in files of that tree. An edit finds its site by meaning (a syntax tree, or
a pattern of the lines around it), never by line number, and puts lines of ours there, between marks
(patch_text.py). All state is in the tree itself: `apply` takes out whatever any version of recoup put
there and puts in this one's, `revert` takes it out to the byte, also where the rest of the file has
changed since, and both refuse where somebody changed our own lines. Either every file of a patch is
written or none is; a run that is killed leaves a tree that applies and reverts.
"""
import contextlib
import difflib
import hashlib
import os
import re
import sys
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import patch_files  # noqa: E402
import patch_text  # noqa: E402
from patch_command import diff, main  # noqa: E402,F401
from patch_text import Edit, FilePatch, PatchError, Site  # noqa: E402,F401

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_SOURCES = (".py", ".h", ".hpp", ".cuh", ".c", ".cc", ".cpp", ".cu", ".txt", ".cmake")


def version() -> str:
    """Of the recoup that this file belongs to."""
    try:
        with open(os.path.join(ROOT, "CMakeLists.txt"), encoding="utf-8") as file:
            found = re.search(r"project\(recoup\s+VERSION\s+([\w.]+)", file.read())
        if found:
            return found[1]
    except OSError:
        pass
    from importlib import metadata
    try:
        return metadata.version("recoup")
    except metadata.PackageNotFoundError:
        return "0"


class Need(NamedTuple):
    """Something that our own sources use of the host. Asked only where the tree has the file."""

    path: str
    pattern: str  # a regular expression that its text must match
    what: str  # "FunctionCtx::SavedTensorHooks, which the recompute is built on"


class State(NamedTuple):
    """One edit, or one added file, in a tree."""

    path: str
    name: str
    applied: bool
    version: str  # that wrote it; "unmarked": one before the marks
    changed: str  # empty, or where somebody changed our lines: "lines 3-9"


class Patch:
    """What turns one kind of tree into a host of recoup.

    `files(tree)` lists the file patches for that tree, or raises PatchError where it is no such tree.
    `anchor` is a file that every such tree has: by it a folder given one level off is found. `locate()`
    says which tree is meant where none is given. `signs` matches any line that can only be ours.
    `within` are the folders in which a file of another version of the patch may be.
    """

    def __init__(self, name: str, files: Callable[[str], List[FilePatch]], anchor: str = "",
                 locate: Optional[Callable[[], Optional[str]]] = None, signs: str = r"(?i)\brecoup",
                 needs: Tuple[Need, ...] = (), within: Tuple[str, ...] = ("",)):
        self.name, self.files, self.anchor, self.locate = name, files, anchor, locate
        self.signs, self.needs, self.within = re.compile(signs), needs, within

    def resolve(self, tree: Optional[str]) -> str:
        """The folder of the tree that is meant by `tree`, or by nothing."""
        if tree is None:
            tree = self.locate() if self.locate else None
            if tree is None:
                raise PatchError(f"give the folder of {self.name}"
                                 + (": none can be imported here" if self.locate else "")
                                 + ". Nothing was written.")
            return tree
        if not os.path.isdir(tree):
            raise PatchError(f"{tree}: {'a file' if os.path.exists(tree) else 'not found'}; give the "
                             f"folder of {self.name}. Nothing was written.")
        if not self.anchor or os.path.isfile(os.path.join(tree, self.anchor)):
            return tree
        up = [os.path.join(os.path.realpath(tree), *[".."] * n)
              for n in range(1, self.anchor.count("/") + 1)]
        down = [entry.path for entry in os.scandir(tree) if entry.is_dir()]
        near = [os.path.normpath(f) for f in up + down if os.path.isfile(os.path.join(f, self.anchor))]
        return near[0] if len(set(near)) == 1 else tree

    def _text(self, tree: str, path: str) -> Optional[str]:
        return patch_files.read(os.path.join(tree, path), path)

    def _present(self, tree: str) -> List[Tuple[FilePatch, Optional[str]]]:
        """The file patches that concern this tree, with the files' text (None: not there); last,
        files that only another version's patch knows."""
        present = []
        for file in self.files(tree):
            text = self._text(tree, file.path)
            if text is None and file.content is None:
                if file.optional:
                    continue
                raise PatchError(f"{os.path.join(tree, file.path)}: not found; give the folder of "
                                 f"{self.name}. Nothing was written.")
            present.append((file, text))
        known = {file.path for file, _ in present}
        return present + [(FilePatch(path), self._text(tree, path))
                          for path in self._marked(tree) if path not in known]

    def _marked(self, tree: str) -> List[str]:
        found = []
        for within in self.within:
            for folder, folders, names in os.walk(os.path.join(tree, within)):
                folders[:] = sorted(f for f in folders if not f.startswith((".", "build")))
                for name in sorted(names):
                    path = os.path.join(folder, name)
                    if not name.endswith(_SOURCES) or not os.path.isfile(path):
                        continue
                    with contextlib.suppress(OSError), open(path, "rb") as file:
                        content = file.read()
                        if b" recoup " in content and any(m in content for m in patch_text.MARKS) and (
                                patch_text.blocks(patch_text.split(content.decode("utf-8", "replace")))
                                or patch_text.added_by(content.decode("utf-8", "replace"))):
                            found.append(os.path.relpath(path, tree))
        return found

    def _bare(self, file: FilePatch, text: str, force: bool = False) -> Tuple[List[str], List[str]]:
        """(the file's lines without ours, the unmarked edits that were found); refuses where ours
        were changed, except that `force` takes out all that stands between two marks."""
        lines = patch_text.split(text)
        blocks = patch_text.blocks(lines)
        changed = [b for b in blocks if b.changed and not (force and b.last - b.first > 1)]
        if changed:
            raise PatchError("; ".join(
                f"{file.path}: {b.changed}: recoup's lines ({b.name}) were changed since recoup "
                f"{b.version} wrote them" for b in changed)
                + ". Put them back or take them out with their marks, or --force takes out all between "
                  "the marks. Nothing was written.")
        lines = patch_text.without(lines, blocks)
        lines, unmarked = patch_text.without_unmarked(lines, [*file.legacy, *file.edits])
        left = {line for line in lines if self.signs.search(line)}
        if left and (file.edits or file.legacy):
            inside = {i for b in blocks for i in range(b.first, b.last)}
            at = [i for i, line in enumerate(patch_text.split(text)) if line in left and i not in inside]
            raise PatchError(
                f"{file.path}: line{'s' * (len(at) > 1)} {', '.join(str(i + 1) for i in at)}: "
                f"{patch_text.split(text)[at[0]].strip()!r} is recoup's, but not as recoup wrote it. Put it "
                "back or take it out. Nothing was written.")
        return lines, unmarked

    def _ours(self, file: FilePatch, text: str) -> Optional[State]:
        """The state of an added file; None where the file there is not ours."""
        by = patch_text.added_by(text)
        if by:
            return State(file.path, "file", True, by[0], "" if by[1] else "the file")
        same = file.content is not None and text.encode() == file.content
        if same or hashlib.sha256(text.encode()).hexdigest() in file.digests:
            return State(file.path, "file", True, "unmarked", "")
        return None

    def report(self, tree: str) -> List[State]:
        """What is applied in the tree, and by which version."""
        result = []
        for file, text in self._present(tree):
            if file.is_added or patch_text.added_by(text or ""):
                state = self._ours(file, text or "")
                if state or file.content is not None:
                    result.append(state or State(file.path, "file", False, "", ""))
                continue
            blocks = {b.name: b for b in patch_text.blocks(patch_text.split(text))}
            wrong = ""
            try:
                unmarked = self._bare(file, text)[1]
            except PatchError as error:
                unmarked, wrong = [], re.search(r"lines? [\d, -]+", str(error))[0].strip()
            for name in dict.fromkeys([*(e.name for e in file.edits), *unmarked, *blocks]):
                if name in blocks:
                    result.append(State(file.path, name, True, blocks[name].version,
                                        blocks[name].changed))
                else:
                    result.append(State(file.path, name, name in unmarked,
                                        "unmarked" if name in unmarked else "", wrong))
        return result

    def status(self, tree: str) -> Dict[Tuple[str, str], bool]:
        """{(path, edit): whether it is applied}"""
        return {(state.path, state.name): state.applied for state in self.report(tree)}

    def change(self, tree: str, revert: bool, force: bool = False) -> dict:
        """{path: (text before, text after)}, None for a file that is not there; writes nothing."""
        changes = {}
        for need in () if revert else self.needs:
            text = self._text(tree, need.path)
            if text is not None and not re.search(need.pattern, text):
                raise PatchError(f"{need.path}: this {self.name} has no {need.what}; take a newer one. "
                                 "Nothing was written.")
        present = self._present(tree)
        old = any(self._bare(file, text, force)[1] for file, text in present
                  if text is not None and not file.is_added and not patch_text.added_by(text))
        for file, before in present:
            if file.is_added or patch_text.added_by(before or ""):
                after = self._added(file, before, revert, force)
            else:
                lines, unmarked = self._bare(file, before, force)
                for edit in (*file.edits, *file.legacy) if old else ():
                    if edit.name not in unmarked and len(edit.find(patch_text.plain(lines))) != 1:
                        raise PatchError(
                            f"{file.path}: {_nearest(lines, edit)}: recoup's lines ({edit.name}) were "
                            "changed since they were written; put them back. Nothing was written.")
                for edit in () if revert else file.edits:
                    lines = patch_text.put(lines, edit, file.path, version())
                after = "".join(lines)
            if after != before:
                changes[file.path] = (before, after)
        return changes

    def _added(self, file: FilePatch, before: Optional[str], revert: bool, force: bool):
        state = self._ours(file, before) if before is not None else None
        if before is not None and state is None:
            if file.content is None:  # another version's name for a file; not ours
                return before
            raise PatchError(f"{file.path}: there is another file of this name; move it away first. "
                             "Nothing was written.")
        if state and state.changed and not force:
            raise PatchError(f"{file.path}: line 1 says that recoup {state.version} added this file, but "
                             "it was changed since; put it back or move it away. Nothing was written.")
        if revert or file.content is None:  # or another version's
            return None
        return patch_text.added(file.content, file.path, version())

    def write(self, tree: str, changes: dict) -> None:
        """Writes all changes; where one fails, the files already written are restored."""
        done = []
        try:
            for path, (before, after) in changes.items():
                patch_files.replace(os.path.join(tree, path), after)
                done.append((path, before))
        except BaseException as error:
            for path, before in reversed(done):
                patch_files.replace(os.path.join(tree, path), before)
            if not isinstance(error, OSError):
                raise
            raise PatchError(f"{error}. Nothing was written.") from error

    def run(self, tree: str, revert: bool, force: bool = False) -> dict:
        """change() and write() as one step that no other process comes between; the changes."""
        with patch_files.lock(tree):
            folders = {os.path.dirname(os.path.realpath(os.path.join(tree, file.path)))
                       for file in self.files(tree)}
            patch_files.clean(folders)
            changes = self.change(tree, revert, force)
            self.write(tree, changes)
            if revert:
                _remove_empty(tree, [f.path for f in self.files(tree) if f.is_added])
            return changes


def _nearest(lines: List[str], edit: Edit) -> str:
    wanted = edit.lines.strip().splitlines()[0]
    near = difflib.get_close_matches(wanted, [line.strip() for line in lines], 1, 0.5)
    at = [i + 1 for i, line in enumerate(lines) if near and line.strip() == near[0]]
    return f"line {at[0]}" if at else "the whole file"


def _remove_empty(tree: str, paths: List[str]) -> None:
    """Folders of added files that a killed run made and left."""
    for path in paths:
        folder = os.path.dirname(os.path.join(tree, path))
        with contextlib.suppress(OSError):
            while not os.path.samefile(folder, tree):
                os.rmdir(folder)
                folder = os.path.dirname(folder)
