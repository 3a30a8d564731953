"""Edits at a line of upstream's text, for sources that no syntax tree of ours can read (C, C++, CMake)."""
import os
import re

from applier import Edit, FilePatch, Site

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def sites_at(line, place, within=None):
    """Finds sites at a line, or at several, whatever their indentation: `before`, `after` or `instead` of
    them; `within`, only the first one after the first match of that pattern."""
    first, *more = line.split("\n")
    pattern = re.compile(r"^([ \t]*)" + re.escape(first) + r"\n"
                         + "".join(r"\1" + re.escape(other) + r"\n" for other in more), re.MULTILINE)

    def sites(text):
        start = 0
        if within:
            match = re.search(within, text, re.MULTILINE)
            if not match:
                return []
            start = match.end()
        found = []
        for match in pattern.finditer(text, start):
            spans = {"before": (match.start(),) * 2, "after": (match.end(),) * 2,
                     "instead": match.span()}
            found.append(Site(*spans[place], match.group(1)))
        return found[:1] if within else found
    return sites


def edit(name, line, place, lines, within=None):
    first = line.split("\n")[0]
    return Edit(name, f"the line `{first}`" + (f" after `{within}`" if within else ""),
                sites_at(line, place, within), lines, replaced=line + "\n" if place == "instead" else "")


def include(name, after):
    return edit(f"#include {name}", f'#include "{after}"', "after", f'#include "{name}"\n')


def added_file(path, source, flat=False, digests=()):
    """A file of ours, `source` in this repository, that is added whole; `flat`: our headers stand beside it
    there, for trees that are compiled without a search path; `digests`: see FilePatch."""
    with open(os.path.join(ROOT, source), "rb") as file:
        content = file.read()
    return FilePatch(path, content=content.replace(b'#include "recoup/', b'#include "') if flat else content,
                     digests=digests)

