"""PyTorch's own tests of torch.utils.checkpoint, with recoup in its place.

    python tests/python/peers_checkpoint.py FOLDER [TEST ...]

FOLDER has test_autograd.py and test_utils.py of PyTorch's test/ folder, of the version that is installed
(fetch them by hand; they are not part of this repository). Needs the package expecttest, which they import.

Every test that calls checkpoint(..., use_reentrant=False) is run twice: as it is, and with that call going to
recoup.checkpoint. Tests that fail as they are (they want a GPU, say) do not count. Exits 1 where a test fails
that is not by design.
"""
import ast
import functools
import importlib
import inspect
import io
import os
import re
import signal
import sys
import types
import unittest
import warnings

import torch
import torch.utils.checkpoint as stock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "plugin", "python"))
import recoup  # noqa: E402

FILES = ("test_autograd", "test_utils")
SECONDS = 120

# Why a test that fails does so on purpose: recoup refuses or raises where PyTorch's is silent, or the test reads
# private names of torch.utils.checkpoint. The words must be in what the test prints, so that another failure of
# the same test is told from it.
BY_DESIGN = {
    "test_checkpointing_without_reentrant_custom_function_works": (
        "a custom function may read its saved tensors twice, as it may without a checkpoint; the test wants "
        "PyTorch's error there", "RuntimeError not raised"),
    "test_checkpoint_detects_non_determinism": (
        "recoup raises, with words of its own; the test wants PyTorch's", "does not match \"recoup: "),
}

original = stock.checkpoint
calls = 0


@functools.wraps(original)
def ours(function, *args, use_reentrant=None, **kwargs):
    """recoup.checkpoint for calls that are non-reentrant, PyTorch's for the rest."""
    global calls
    if use_reentrant is not False:
        return original(function, *args, use_reentrant=use_reentrant, **kwargs)
    calls += 1
    # set_checkpoint_early_stop() is a setting of PyTorch's module.
    if stock._enable_checkpoint_early_stop is not None:
        kwargs["early_stop"] = stock._enable_checkpoint_early_stop
    if kwargs.get("context_fn") is stock.noop_context_fn:
        del kwargs["context_fn"]
    return recoup.checkpoint(function, *args, **kwargs)


class TooLong(Exception):
    pass


def stand_in(folder, name):
    """Empty modules for those of PyTorch's test folder that a file imports and `folder` does not have."""
    with open(os.path.join(folder, name + ".py"), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("autograd."):
            if not os.path.exists(os.path.join(folder, *node.module.split(".")) + ".py"):
                module = types.ModuleType(node.module)
                for alias in node.names:
                    setattr(module, alias.name, type(alias.name, (unittest.TestCase,), {}))
                sys.modules.setdefault("autograd", types.ModuleType("autograd"))
                sys.modules[node.module] = module


def _too_long(*_):
    raise TooLong(f"not done after {SECONDS} s")


def run(test):
    """(whether it passed, whether it was skipped, the last line of what it says, the line in the test)."""
    global calls
    calls = 0
    torch.manual_seed(0)
    signal.alarm(SECONDS)
    output, result = io.StringIO(), unittest.TestResult()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stdout, sys.stdout = sys.stdout, output
            try:
                test.run(result)
            finally:
                sys.stdout = stdout
    finally:
        signal.alarm(0)
    problems = [text for _, text in result.failures + result.errors]
    said = problems[-1].strip().splitlines() if problems else [""]
    error = next((line for line in reversed(said) if re.match(r"[\w.]+(Error|Exception|TooLong)\b", line)), said[-1])
    file = os.path.basename(inspect.getfile(type(test)))
    lines = [line.strip() for line in said if line.strip().startswith("File ") and f"{file}\"" in line]
    place = f"{file}:{lines[-1].split('line ')[1].split(',')[0]}" if lines else ""
    return not problems, bool(result.skipped), error, place, "\n".join(said)


def candidates(module, wanted):
    for case in list(vars(module).values()):
        if not (isinstance(case, type) and issubclass(case, unittest.TestCase)):
            continue
        for name in unittest.defaultTestLoader.getTestCaseNames(case):
            try:
                source = inspect.getsource(inspect.unwrap(getattr(case, name)))
            except (OSError, TypeError):
                continue
            if "checkpoint" in source.lower() and (not wanted or name in wanted):
                yield case(name)


def main():
    if len(sys.argv) < 2 or not os.path.isdir(sys.argv[1]):
        print(__doc__, file=sys.stderr)
        return 2
    folder, wanted = os.path.abspath(sys.argv[1]), set(sys.argv[2:])
    sys.path.insert(0, folder)
    sys.argv = sys.argv[:1]  # PyTorch's test helpers read it
    signal.signal(signal.SIGALRM, _too_long)
    stock.checkpoint = ours
    rows = {"passed": [], "by design": [], "failed": [], "fails as it is": []}
    for name in FILES:
        if not os.path.exists(os.path.join(folder, name + ".py")):
            print(f"{name}.py is not in {folder}", file=sys.stderr)
            return 2
        stand_in(folder, name)
        module = importlib.import_module(name)
        for test in candidates(module, wanted):
            passed, skipped, said, place, text = run(test)
            if calls == 0 or skipped:
                continue
            if passed:
                rows["passed"].append((test.id(), "", ""))
                continue
            replaced = {key: value for key, value in vars(module).items() if value is ours}
            for key in replaced:
                setattr(module, key, original)
            stock.checkpoint = original
            fresh = type(test)(test._testMethodName)
            as_it_is = run(fresh)[0]
            stock.checkpoint = ours
            for key in replaced:
                setattr(module, key, ours)
            reason, words = BY_DESIGN.get(test._testMethodName, (None, None))
            kind = ("fails as it is" if not as_it_is else
                    "by design" if reason and words in text else "failed")
            rows[kind].append((test.id(), place, reason if kind == "by design" else said))
    for kind, tests in rows.items():
        print(f"{kind}: {len(tests)}")
        for test, place, why in tests:
            if kind != "passed":
                print(f"  {test} ({place}): {why}")
    counted = sum(len(rows[kind]) for kind in ("passed", "by design", "failed"))
    print(f"torch {torch.__version__}: {len(rows['passed'])} of {counted} passed, "
          f"{len(rows['by design'])} by design, {len(rows['failed'])} failed")
    return 1 if rows["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
