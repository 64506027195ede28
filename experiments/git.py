"""git, asked in a folder; with the standard library only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# By these a hook of another repository says which one is meant.
_WHICH = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


def git(root: Path, *arguments: str, asked: str | None = None) -> str | None:
    """What a git command in `root` prints; None where it fails, or there is no git.

    asked: what it reads.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env={name: value for name, value in os.environ.items() if name not in _WHICH},
            input=asked,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
