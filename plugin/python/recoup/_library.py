"""Where recoup's built libraries are."""
import os

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def folders():
    """The folders that are searched, first one first: $RECOUP_BUILD alone where it is set; else the
    package's own lib/ (an installed wheel), and build/ of the clone that the package is in."""
    if os.environ.get("RECOUP_BUILD"):
        return [os.path.abspath(os.environ["RECOUP_BUILD"])]
    return [os.path.join(_PACKAGE, "lib"),
            os.path.normpath(os.path.join(_PACKAGE, "..", "..", "..", "build"))]


def library(name: str) -> str:
    """The path of a built library, such as librecoup_policy.so. ImportError where there is none."""
    for folder in folders():
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    raise ImportError(f"recoup: {name} is not in {' nor in '.join(folders())}; install the package "
                      "(pip install plugin/python), or build recoup (examples/run.sh) and set "
                      "RECOUP_BUILD to its build folder")
