"""Writing a file whole or not at all; with the standard library only."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = "disk full"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; `path` becomes that file, or stays as it was if anything fails.

    Folders above are made. OSError where the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not named after `path`: the names of records are nearly as long as names may be.
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def in_words(error: OSError) -> str:
    """What went wrong, without where: that a disk is full (or its inodes, or a quota) plainly."""
    return DISK_FULL if is_disk_full(error) else error.strerror or str(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether the system said that nothing more can be written."""
    return isinstance(error, OSError) and error.errno in _FULL


def full_disk() -> str | None:
    """The folder of temporary files where no space or no inode is left there, else None."""
    found = os.statvfs(tempfile.gettempdir())
    no_inode = found.f_files > 0 and found.f_favail == 0
    return tempfile.gettempdir() if found.f_bavail == 0 or no_inode else None
