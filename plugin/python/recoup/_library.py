"""Where what recoup is made of is: built libraries, the program, headers and CMake's files."""
import os

PACKAGE = os.path.dirname(os.path.abspath(__file__))
CLONE = os.path.normpath(os.path.join(PACKAGE, "..", "..", ".."))


def folders(kind="lib"):
    """The folders that are searched, first one first: $RECOUP_BUILD alone where it is set; else the
    package's own (an installed wheel), and build/ of the clone that the package is in."""
    if os.environ.get("RECOUP_BUILD"):
        return [os.path.abspath(os.environ["RECOUP_BUILD"])]
    return [os.path.join(PACKAGE, kind), os.path.join(CLONE, "build")]


def find(name, kind="lib"):
    """The path of a built file, such as librecoup_policy.so, or None."""
    paths = [os.path.join(folder, name) for folder in folders(kind)]
    return next((path for path in paths if os.path.exists(path)), None)


def library(name: str, kind="lib") -> str:
    """The path of a built file. ImportError where there is none."""
    path = find(name, kind)
    if path is None:
        raise ImportError(f"recoup: {name} is not in {' nor in '.join(folders(kind))}; install the package "
                          "(pip install plugin/python), or build recoup (examples/run.sh) and set "
                          "RECOUP_BUILD to its build folder")
    return path


def plugin_path() -> str:
    """The path of librecoup_policy.so: what a host with checkpoints of its own loads."""
    return library("librecoup_policy.so")


def cmake_prefix() -> str:
    """The prefix for CMAKE_PREFIX_PATH: find_package(recoup) finds recoup::host and recoup::policy there.
    ImportError in a clone, which add_subdirectory() takes as it is."""
    if not os.path.isdir(os.path.join(PACKAGE, "lib", "cmake", "recoup")):
        raise ImportError(f"recoup: {PACKAGE} is not an installed package, which alone has CMake's files; "
                          "pip install plugin/python, or add_subdirectory() the clone")
    return PACKAGE
