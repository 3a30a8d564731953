"""The checkpoint engine's Python extension: found where it is built, or built at its first use.

An extension fits one version of torch, one of Python and one C++ ABI, so a wheel carries the engine's
sources, and the extension that is made of them is kept in a folder of the user's cache that is named
after all of these (RECOUP_CACHE, else XDG_CACHE_HOME/recoup, else ~/.cache/recoup).
"""
import fcntl
import functools
import glob
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

from ._library import PACKAGE, find, folders

_NAME = "recoup_torch.so"


class EngineError(ImportError):
    """The engine cannot be had here; the text says why and what to do."""


@functools.lru_cache(maxsize=None)
def engine():
    """The module recoup_torch. EngineError, in one sentence, where there is none."""
    try:
        import torch
    except ImportError as error:
        raise EngineError("recoup: the engine needs PyTorch, which cannot be imported "
                          f"({error}); recoup.Policy works without it") from None
    path = find(_NAME)
    if path is None:
        if os.environ.get("RECOUP_BUILD") or not os.path.isdir(_sources()):
            raise EngineError(f"recoup: {_NAME} is not in {' nor in '.join(folders())}; build recoup "
                              "(tests/run.sh), or install the package (pip install plugin/python) and unset "
                              "RECOUP_BUILD")
        path = os.path.join(cache_folder(torch), _NAME)
        if not os.path.exists(path):
            _build(torch, path)
    spec = importlib.util.spec_from_file_location("recoup_torch", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise EngineError(f"recoup: {path} cannot be loaded into torch {torch.__version__}: {error}; it "
                          "was built for another version: build it again") from None
    return module


def _sources():
    return os.path.join(PACKAGE, "src")


def cache_folder(torch):
    """Where the extension for this torch and this Python is kept."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(_sources(), "**", "*.*"), recursive=True)):
        with open(path, "rb") as file:
            digest.update(path[len(_sources()):].encode() + b"\0" + file.read())
    root = os.environ.get("RECOUP_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "recoup")
    return os.path.join(root, "engine", "-".join([
        f"torch{torch.__version__}", sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag,
        f"cxxabi{int(torch.compiled_with_cxx11_abi())}", digest.hexdigest()[:12]]))


def _tools():
    """(cmake and generator), or EngineError naming what is missing."""
    missing = [name for name in ("cmake", "g++") if not shutil.which(os.environ.get("CXX", name)
                                                                     if name == "g++" else name)]
    generator = next((g for g, tool in (("Ninja", "ninja"), ("Unix Makefiles", "make"))
                      if shutil.which(tool)), None)
    if generator is None:
        missing.append("ninja or make")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing.append("Python's headers (python3-dev)")
    if missing:
        raise EngineError("recoup: the engine is built at its first use, and that needs "
                          f"{', '.join(missing)}, not found here; install them (pip has cmake and ninja), "
                          "or set RECOUP_BUILD to a folder with a built recoup_torch.so")
    return generator


def _build(torch, path):
    generator = _tools()
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, "lock"), "w")  # of the processes of one job only one builds
    except OSError as error:
        raise EngineError(f"recoup: the engine is built at its first use, into {folder}, where nothing can be "
                          f"written ({error.strerror}); set RECOUP_CACHE to another folder") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return
        print(f"recoup: building the engine for torch {torch.__version__} and Python "
              f"{sys.version.split()[0]}, once, into {folder} (a minute or two)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            log = os.path.join(folder, "build.log")
            configure = ["cmake", "-G", generator, "-S", os.path.join(_sources(), "plugin", "python"),
                         "-B", work, "-Wno-dev", f"-DCMAKE_PREFIX_PATH={os.path.dirname(torch.__file__)}",
                         f"-DPython_EXECUTABLE={sys.executable}"]
            build = ["cmake", "--build", work, "--target", "recoup_torch", "--parallel",
                     str(min(os.cpu_count() or 1, 4))]
            with open(log, "w") as output:
                for command in (configure, build):
                    done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
                    if done.returncode:
                        raise EngineError("recoup: the engine cannot be built for torch "
                                          f"{torch.__version__}; {log} says why")
            os.replace(os.path.join(work, _NAME), path)
