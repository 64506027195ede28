"""Where a record's numbers came from: versions, commit, command."""

from __future__ import annotations

import platform
import shlex
from functools import cache
from importlib import metadata
from pathlib import Path

from experiments.case import Case
from experiments.digest import ROOT
from experiments.git import git
from models.kernels import tile_tables

# What a record's numbers depend on; a change elsewhere (the paper, say) leaves them clean.
_MEASURED = ("models", "experiments")


def software(digest: str) -> dict:
    """The record's `software` object, for code of that digest. Imports torch."""
    import torch

    return {
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "flash_attn": _version("flash-attn-4") or _version("flash-attn"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": _dirty(),
        "code_digest": digest,
        "tile_tables": tile_tables.digest(),
    }


def command(tier: str, case: Case) -> str:
    """The command line that makes this one record, whichever call of many made it here."""
    return shlex.join(["python", "-m", "experiments", "run", "--tier", tier, "--case", case.name])


def _dirty() -> bool | None:
    status = _git("status", "--porcelain", "--", *_MEASURED)
    return None if status is None else bool(status)


@cache
def _git(*arguments: str) -> str | None:
    """Output of a git command in the repository; None where there is no git or no repository.

    Sources that were unpacked within another repository are none of its commits.
    """
    top = git(ROOT, "rev-parse", "--show-toplevel")
    return git(ROOT, *arguments) if top and Path(top).resolve() == ROOT.resolve() else None


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
