"""The command line of every patch: apply, revert and status."""
import argparse
import difflib
import sys
from typing import Optional

from patch_text import PatchError


def diff(changes: dict) -> str:
    lines = []
    for path, (before, after) in changes.items():
        lines += difflib.unified_diff((before or "").splitlines(True), (after or "").splitlines(True),
                                      f"a/{path}" if before is not None else "/dev/null",
                                      f"b/{path}" if after is not None else "/dev/null", n=3)
    return "".join(lines)


def _print_status(states) -> None:
    for state in states:
        how = "changed" if state.changed else "applied" if state.applied else "not applied"
        where = f" ({state.changed} changed)" if state.changed else ""
        print(f"{how:11}  {state.version:8}  {state.path}: {state.name}{where}")
    kinds = {state.applied for state in states}
    print("changed since it was written: apply and revert refuse" if any(s.changed for s in states) else
          {frozenset([True]): "applied", frozenset([False]): "not applied"}.get(
              frozenset(kinds), "partly applied"))


def main(patch, arguments=None, program: Optional[str] = None) -> int:
    """Runs a command line on an applier.Patch; the exit status."""
    parser = argparse.ArgumentParser(prog=program,
                                     description=f"Makes {patch.name} a host of recoup, and back.")
    parser.add_argument("command", choices=["apply", "revert", "status"])
    parser.add_argument("tree", nargs="?", metavar="FOLDER", help=f"the folder of {patch.name}"
                        + ("; without it, the one that Python imports" if patch.locate else ""))
    parser.add_argument("--dry-run", action="store_true", help="print the diff, write nothing")
    parser.add_argument("--force", action="store_true",
                        help="take out what stands between recoup's marks even if it was changed")
    options = parser.parse_args(arguments)
    try:
        tree = patch.resolve(options.tree)
        if tree != options.tree:
            print(f"{patch.name} in {tree}", file=sys.stderr)
        revert = options.command == "revert"
        if options.command == "status":
            _print_status(patch.report(tree))
            return 0
        if options.dry_run:
            sys.stdout.write(diff(patch.change(tree, revert, options.force)))
            return 0
        changes = patch.run(tree, revert, options.force)
        for path in changes:
            print(f"{'reverted' if revert else 'patched'}  {path}")
        if not changes:
            print("nothing to do")
        return 0
    except PatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
