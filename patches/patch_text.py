"""The text of a patched file: what an edit is, and how lines of ours are told from the file's own.

Each edit's lines stand between two comments that name the edit, the version of recoup that wrote them
and a digest of what was written; lines that ours replace are kept there as comments. So any version
knows the lines of any other, can take them out to the byte, and sees when somebody changed them:

    # recoup 0.1.0 [3f2a9c41] begin: the first N layers only
    # recoup was: self.recompute_mlp = True
    self.recompute_mlp = ...
    # recoup [3f2a9c41] end

An added file carries such a mark in its first line. Versions before the marks are recognised by the
exact text of their lines (`Edit.applied`).
"""
import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import Callable, List, NamedTuple, Optional


class PatchError(Exception):
    """A complete sentence for the user; nothing was written."""


class Site(NamedTuple):
    """Where an edit goes: the whole lines it replaces (empty: it inserts), as offsets, and the
    indentation of its own."""

    start: int
    end: int
    indent: str


@dataclass(frozen=True)
class Edit:
    """One edit of one file."""

    name: str  # what it adds, for messages and marks; one name a file
    wanted: str  # what its site looks like, for the error where it is not found
    find: Callable[[str], List[Site]]  # the sites in the unedited text (line ends are \n); must be one
    lines: str  # our lines, indented from column 0, with a newline at the end
    replaced: str = ""  # the line that ours replace, likewise; empty for an insertion

    def indented(self, text: str, indent: str) -> str:
        return "".join(indent + line if line.strip() else line for line in text.splitlines(True))

    def applied(self, text: str) -> Optional[Site]:
        """Where our lines stand without marks, at any indentation."""
        first = self.lines.splitlines()[0]
        for match in re.finditer(r"^([ \t]*)" + re.escape(first) + "$", text, re.MULTILINE):
            ours = self.indented(self.lines, match.group(1))
            if text.startswith(ours, match.start()):
                return Site(match.start(), match.start() + len(ours), match.group(1))
        return None


@dataclass(frozen=True)
class FilePatch:
    """The edits of one file, or a file of ours that is added whole (`content`)."""

    path: str  # relative to the tree
    edits: List[Edit] = field(default_factory=list)
    content: Optional[bytes] = None
    optional: bool = False  # whether the tree may lack the file
    legacy: List[Edit] = field(default_factory=list)  # what versions before the marks wrote here
    # SHA-256 of this file as versions before the marks added it; alone: a file that only they had.
    digests: tuple = ()

    @property
    def is_added(self) -> bool:
        return self.content is not None or bool(self.digests)


class Block(NamedTuple):
    """Lines of ours with their marks: lines[first:last]."""

    first: int
    last: int
    name: str
    version: str
    original: List[str]  # the file's own lines that they stand in for, with their ends
    changed: str  # empty, or what is wrong: "lines 3-9"


_MARK = r"^(?P<indent>[ \t]*)(?:#|//) recoup "
_BEGIN = re.compile(_MARK + r"(?P<version>\S+) \[(?P<digest>[0-9a-f]{8})\] begin: (?P<name>.*)$")
_END = re.compile(_MARK + r"\[(?P<digest>[0-9a-f]{8})\] end$")
_WAS = re.compile(r"^(?:#|//) recoup was: ")
_ADDED = re.compile(r"^(?:#|//) recoup (?P<version>\S+) \[(?P<digest>[0-9a-f]{8})\] added: ")
MARKS = (b" begin: ", b"] end", b" added: ")


def _comment(path: str) -> str:
    name = os.path.basename(path)
    hashes = name.endswith((".py", ".sh", ".cmake", ".txt", ".toml", ".yaml", ".yml", ".mk", "Makefile"))
    return "#" if hashes else "//"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def split(text: str) -> List[str]:
    """Lines with their ends; only \\n and \\r\\n end one, as for a compiler."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _bare(line: str) -> str:
    return line.rstrip("\n").removesuffix("\r") if line.endswith("\n") else line


def plain(lines: List[str]) -> str:
    return "".join(_bare(line) + "\n" if line.endswith("\n") else line for line in lines)


def _ending(lines: List[str]) -> str:
    crlf = sum(line.endswith("\r\n") for line in lines)
    return "\r\n" if crlf * 2 > len(lines) else "\n"


def _dedented(lines: List[str], indent: str) -> str:
    return "".join(_bare(line).removeprefix(indent) + "\n" for line in lines)


def _at(first: int, last: int) -> str:
    return f"line {first + 1}" if last - first == 1 else f"lines {first + 1}-{last}"


def blocks(lines: List[str]) -> List[Block]:
    """All blocks of ours in a file, in order. A mark without its other half is a changed block."""
    found: List[Block] = []
    i = 0
    while i < len(lines):
        begin = _BEGIN.match(_bare(lines[i]))
        if not begin:
            if _END.match(_bare(lines[i])):
                found.append(Block(i, i + 1, "?", "?", [], _at(i, i + 1)))
            i += 1
            continue
        j = i + 1
        while j < len(lines) and not _END.match(_bare(lines[j])) and not _BEGIN.match(_bare(lines[j])):
            j += 1
        end = _END.match(_bare(lines[j])) if j < len(lines) else None
        if not end or end["digest"] != begin["digest"]:
            found.append(Block(i, i + 1, begin["name"], begin["version"], [], _at(i, i + 1)))
            i += 1
            continue
        indent, inside = begin["indent"], lines[i + 1:j]
        original = []
        for line in inside:
            was = _WAS.match(_bare(line).removeprefix(indent))
            if not was:
                break
            rest = line.removeprefix(indent)[was.end():]
            original.append(indent + rest if rest.strip() else rest)
        intact = _digest(_dedented(inside, indent)) == begin["digest"]
        if not lines[j].endswith("\n") and original:
            original[-1] = _bare(original[-1])
        found.append(Block(i, j + 1, begin["name"], begin["version"], original,
                           "" if intact else _at(i, j + 1)))
        i = j + 1
    names = [block.name for block in found]
    return [block if block.changed or names.count(block.name) == 1
            else block._replace(changed=_at(block.first, block.last)) for block in found]


def without(lines: List[str], ours: List[Block]) -> List[str]:
    """The file as it was before these blocks."""
    result, position = [], 0
    for block in ours:
        result += lines[position:block.first]
        position = block.last
        at_end_without_newline = not lines[block.last - 1].endswith("\n")
        result += block.original
        if at_end_without_newline and not block.original and result:
            result[-1] = _bare(result[-1])
    return result + lines[position:]


def without_unmarked(lines: List[str], edits: List[Edit]) -> tuple:
    """(the file before what versions without marks wrote, the names of their edits)"""
    names = []
    for edit in reversed(edits):
        text = plain(lines)
        site = edit.applied(text)
        if site is None:
            continue
        first, last = text.count("\n", 0, site.start), text.count("\n", 0, site.end)
        ending = "\r\n" if lines[first].endswith("\r\n") else "\n"
        replaced = [_bare(line) + ending
                    for line in split(edit.indented(edit.replaced, site.indent))]
        lines = lines[:first] + replaced + lines[last:]
        names.append(edit.name)
    return lines, names


def put(lines: List[str], edit: Edit, path: str, version: str) -> List[str]:
    """The file with one more block."""
    text = plain(lines)
    sites = edit.find(text)
    if len(sites) != 1:
        raise PatchError(f"{path}: {edit.name}: searched for {edit.wanted} and found it "
                         f"{len(sites)} times; this version is not known. Nothing was written.")
    site = sites[0]
    first = len(split(text[:site.start]))
    last = first + len(split(text[site.start:site.end]))
    comment, ending = _comment(path), _ending(lines)
    body = [f"{site.indent}{comment} recoup was: {line.removeprefix(site.indent)}"
            for line in lines[first:last]]
    body += [_bare(line) + ending for line in split(edit.indented(edit.lines, site.indent))]
    digest = _digest(_dedented(body, site.indent))
    block = [f"{site.indent}{comment} recoup {version} [{digest}] begin: {edit.name}{ending}", *body,
             f"{site.indent}{comment} recoup [{digest}] end{ending}"]
    before = lines[:first]
    if last == len(lines) and lines and not lines[-1].endswith("\n"):
        # The file ends without a newline, and goes on doing so.
        block = [_bare(line) + ending for line in block]
        block[-1] = _bare(block[-1])
        if before and not before[-1].endswith("\n"):
            before = before[:-1] + [before[-1] + ending]
    return before + block + lines[last:]


def added(content: bytes, path: str, version: str) -> str:
    """An added file's text, with its mark."""
    text = content.decode()
    return (f"{_comment(path)} recoup {version} [{_digest(plain(split(text)))}] added: this file is "
            f"recoup's, its patch updates and removes it\n{text}")


def added_by(text: str) -> Optional[tuple]:
    """(the version that added this file, whether it is as it was written); None: no file of ours"""
    lines = split(text)
    mark = _ADDED.match(_bare(lines[0])) if lines else None
    return (mark["version"], _digest(plain(lines[1:])) == mark["digest"]) if mark else None
