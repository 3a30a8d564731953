"""Files of somebody else's source tree: read whole, replaced at once, locked, with nothing left behind."""
import contextlib
import glob
import hashlib
import os
import sys
import tempfile
from typing import Iterable, Optional

from patch_text import PatchError

try:
    import fcntl
except ImportError:  # no such lock on this system
    fcntl = None

_TEMPORARY = ".recoup-patch-"


def read(path: str, shown: str) -> Optional[str]:
    """The file's text as it is on disk; None where there is none."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PatchError(f"{shown}: cannot be read: {error.strerror}. Nothing was written.") from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PatchError(f"{shown}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x}); "
                         "convert the file first. Nothing was written.") from error


def replace(path: str, text: Optional[str]) -> None:
    """Makes `text` the content of `path` at once; None removes it and folders it leaves empty.

    Links stay links, a file keeps its mode and owner, and what is new belongs to the folder's owner.
    """
    if text is None:
        folder = os.path.dirname(path)
        os.remove(path)
        while not os.listdir(folder):
            os.rmdir(folder)
            folder = os.path.dirname(folder)
        return
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    made = []
    temporary = None
    try:
        for name in reversed(missing):
            os.mkdir(name)
            made.append(name)
            _give(name, os.stat(os.path.dirname(name)))
        handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=os.path.dirname(path))
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        there = os.path.exists(path)
        _give(temporary, os.stat(path if there else os.path.dirname(path)))
        os.chmod(temporary, os.stat(path).st_mode if there else 0o644)
        os.replace(temporary, path)
    except BaseException:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        for name in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(name)
        raise


def _give(path: str, owner: os.stat_result) -> None:
    mine = os.stat(path)
    if (mine.st_uid, mine.st_gid) == (owner.st_uid, owner.st_gid) or not hasattr(os, "chown"):
        return
    try:
        os.chown(path, owner.st_uid, owner.st_gid)
    except OSError:  # not root: a file written into somebody else's folder is the writer's
        with contextlib.suppress(OSError):
            os.chown(path, -1, owner.st_gid)


def clean(folders: Iterable[str]) -> None:
    """Removes what a run that was killed has left in these folders. Only under the lock."""
    for folder in folders:
        for name in glob.glob(os.path.join(glob.escape(folder), _TEMPORARY + "*")):
            with contextlib.suppress(OSError):
                os.unlink(name)


@contextlib.contextmanager
def lock(tree: str):
    """One change of a tree at a time, whichever process makes it; the others wait."""
    handle = None
    if fcntl:
        try:
            handle = os.open(tree, os.O_RDONLY)
            _wait(handle, tree)
        except OSError:  # a file system that locks no folders
            if handle is not None:
                os.close(handle)
            name = hashlib.sha256(os.path.realpath(tree).encode()).hexdigest()[:16]
            handle = os.open(os.path.join(tempfile.gettempdir(), f"recoup-patch-{name}.lock"),
                             os.O_RDWR | os.O_CREAT, 0o666)
            _wait(handle, tree)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _wait(handle: int, tree: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another change of {tree}", file=sys.stderr)
        fcntl.flock(handle, fcntl.LOCK_EX)
