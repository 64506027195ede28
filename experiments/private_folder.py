"""A folder of this user alone: for locks that end with their holder, and for temporary files.

What a killed process leaves there is removed when the next one begins.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Of locks: one for all processes of this user on this machine, whatever TMPDIR says.
SHARED = Path("/tmp")
_TEMPORARY = "temporary"


class NotPrivate(OSError):
    """Others can write to a folder or file that must be this user's: names it."""


def private(parent: Path) -> Path:
    """This user's folder in `parent`, made where there is none; NotPrivate of another's."""
    folder = parent / f"attention-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NotPrivate(
            f"{folder}: expected a folder of this user alone (mode 700), not "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}; remove it"
        )
    return folder


def open_lock(name: str) -> int:
    """A descriptor, for flock, of the file `name` in the shared folder; links are not followed."""
    path = private(SHARED) / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(descriptor)
        raise NotPrivate(f"{path}: expected a file of this user; remove it")
    return descriptor


@contextmanager
def temporary(kind: str) -> Iterator[Path]:
    """A new folder for temporary files, which follow TMPDIR; gone when this ends.

    It is locked for as long as this process or a fork of it lives, by which `sweep` knows it.
    """
    with _all_temporary() as folders:
        made = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=folders))
        lock = os.open(made, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def sweep() -> list[Path]:
    """Remove the temporary folders of processes that are gone; returns what they were."""
    swept = []
    with _all_temporary() as folders:
        for path in sorted(folders.iterdir()):
            with suppress(OSError):
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                    swept.append(path)
                finally:
                    os.close(lock)
    return swept


@contextmanager
def _all_temporary() -> Iterator[Path]:
    """The folder of temporary ones, while no other process makes or sweeps any."""
    folders = private(Path(tempfile.gettempdir())) / _TEMPORARY
    folders.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folders, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folders
    finally:
        os.close(lock)
