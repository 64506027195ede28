"""Which committed sources lie here: git's tree SHA-1 of a folder, in plain Python.

A machine without git, or with a plain copy of the sources, says by it what it ran; where
the repository is, `commit_of` finds the commit that has the same sources.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from fnmatch import translate
from pathlib import Path

from experiments.digest import ROOT
from experiments.git import git

FOLDERS = ("models", "experiments")
# What running, testing or copying the sources leaves beside them: as in `.gitignore`.
_LEFT_OUT = (
    *("__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints", ".git"),
    *("*.py[cod]", "*.egg-info", ".*.partial", ".DS_Store", ".lease"),
)
# One pattern of all: a round has thousands of names.
_IS_LEFT_OUT = re.compile("|".join(map(translate, _LEFT_OUT))).match


def of_sources() -> dict[str, str]:
    """The trees of the sources that records hang on: `models` and `experiments`."""
    return {name: tree_sha(ROOT / name) for name in FOLDERS}


def tree_sha(folder: Path) -> str:
    """The SHA-1 (40 hex digits) of git's tree of `folder`, from the files on disk.

    As `git rev-parse HEAD:folder` says it where all of them are committed. What
    `.gitignore` names and folders without a file are left out, as is what is neither file,
    folder nor link. OSError where something cannot be read.
    """
    return _tree(os.fsencode(folder))[0].hex()


def _tree(folder: bytes) -> tuple[bytes, bool]:
    """The tree's SHA-1, and whether anything is in it."""
    entries = []
    with os.scandir(folder) as found:
        for entry in found:
            if _IS_LEFT_OUT(os.fsdecode(entry.name)):
                continue
            made = _entry(entry)
            if made:
                mode, sha = made
                # git sorts a folder as if its name ended in a slash.
                key = entry.name + (b"/" if mode == b"40000" else b"")
                entries.append((key, mode + b" " + entry.name + b"\0" + sha))
    return _sha(b"tree", b"".join(line for _, line in sorted(entries))), bool(entries)


def _entry(entry: os.DirEntry) -> tuple[bytes, bytes] | None:
    """Mode and SHA-1 of what lies there; None for what git does not keep."""
    if entry.is_symlink():
        return b"120000", _sha(b"blob", os.readlink(entry.path))
    if entry.is_dir():
        sha, is_filled = _tree(entry.path)
        return (b"40000", sha) if is_filled else None
    if not entry.is_file():
        return None
    runs = entry.stat().st_mode & stat.S_IXUSR
    with open(entry.path, "rb") as file:
        return b"100755" if runs else b"100644", _sha(b"blob", file.read())


def _sha(kind: bytes, content: bytes) -> bytes:
    header = kind + b" " + str(len(content)).encode() + b"\0"
    return hashlib.sha1(header + content, usedforsecurity=False).digest()


def commit_of(trees: dict[str, str], root: Path = ROOT) -> str | None:
    """The newest commit of the repository at `root` whose sources have these trees, or None.

    trees: as `of_sources` gives them. Looked for from HEAD and every branch, local or
    remote; None also where there is no git or no repository.
    """
    listed = git(root, "rev-list", "--date-order", "--branches", "--remotes", "HEAD")
    commits = (listed or "").split()
    asked = "".join(f"{commit}:{name}\n" for commit in commits for name in FOLDERS)
    # One line per answer: the tree, or what was asked and "missing".
    answers = (git(root, "cat-file", "--batch-check=%(objectname)", asked=asked) or "").split("\n")
    wanted = [trees[name] for name in FOLDERS]
    for number, commit in enumerate(commits):
        if answers[len(FOLDERS) * number :][: len(FOLDERS)] == wanted:
            return commit
    return None
