"""The command `recoup`: the C++ program of that name, which a wheel carries beside its libraries, and
`recoup sweep`, which is drawn in Python: a trainer with several settings in turn, compared."""
import os
import sys

from ._library import CLONE, PACKAGE, find, library


def versions():
    """Lines on what is here: the contract, the libraries, torch."""
    from importlib import metadata

    from . import _contract

    path = library("librecoup_policy.so")
    table = _contract.load(path)
    minor = table.abi_minor if _contract.has(table, "abi_minor") else 0
    lines = [f"recoup {table.version.decode()}", f"contract: {table.abi_version}.{minor}",
             f"policy: {path}"]
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return lines + ["torch: not installed; the policy needs none, the engine does"]
    lines.append(f"torch: {torch}")
    built = find("recoup_torch.so")
    return lines + [f"engine: {built or 'built at its first use'}"]


def _sweep(arguments):
    """Runs what draws settings: the wheel's, or a clone's."""
    folders = [os.path.join(PACKAGE, "sweep"), os.path.join(CLONE, "examples", "gpt")]
    sys.path.insert(0, next(f for f in folders if os.path.exists(os.path.join(f, "sweep.py"))))
    import sweep

    sys.argv = ["recoup sweep", *arguments]
    return sweep.main()


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["sweep"]:
        return _sweep(arguments[1:])
    if arguments == ["--version"]:
        print("\n".join(versions()))
        return 0
    program = library("recoup", "bin")
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    sys.exit(main())
