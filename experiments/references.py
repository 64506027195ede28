"""What cases are checked against, computed once: the systems of a shape share it, and all rounds.

A reference follows from seeded inputs, so it is the same each time. Each is a file, named after all
that it follows from, in a folder named after the code, torch and host that made it: where one of
these changes, all are made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.atomic_write import atomic_write
from experiments.digest import modules_digest, release
from experiments.machine import Machine

NAME = "references"
# What is kept at most; of what is larger than a part of it, nothing.
_ROOM_BYTES, _PARTS = 2 * 2**30, 8


@dataclass(frozen=True)
class References:
    """Those kept in `folder`; None keeps nothing."""

    folder: Path | None = None

    def get(self, what: dict, make: Callable[[], dict], device: str = "cpu") -> dict:
        """What `make()` returns, or returned before where `what` was the same.

        what: all that it follows from, beside the code, as JSON. Values are tensors, which come to
        `device`, and plain ones.
        """
        import torch

        if self.folder is None:
            return make()
        path = self.folder / f"{_digest(what)}.pt"
        # One that cannot be read is made anew.
        with suppress(OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            found = torch.load(path, map_location=device, weights_only=True)
            os.utime(path)
            return found
        made = make()
        # torch says RuntimeError where the disk is full.
        with suppress(OSError, RuntimeError), atomic_write(path) as partial:
            torch.save(made, partial)
            if partial.stat().st_size > _ROOM_BYTES // _PARTS:
                raise OSError("too large to keep")
        self._make_room()
        return made

    def _make_room(self) -> None:
        """Let those go that were used least recently."""
        files = [(path, path.stat()) for path in self.folder.glob("*.pt")]
        left = _ROOM_BYTES
        for path, stat in sorted(files, key=lambda one: -one[1].st_mtime):
            left -= stat.st_size
            if left < 0:
                path.unlink(missing_ok=True)


NOT_KEPT = References()


def of(out: Path, machine: Machine) -> References:
    """Those kept beside the rounds of a machine; what other code or hosts made is removed."""
    beside = out / machine.id / NAME
    name = f"{_code()}-{machine.host.id}"
    if beside.is_dir():
        for other in beside.iterdir():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
    return References(beside / name)


@cache
def _code() -> str:
    """The digest of what makes references."""
    procedures = ("attention", "replica", "streamed")
    modules = [f"experiments.procedures.{name}" for name in procedures]
    n_grams = "experiments/training/kneser_ney.py"
    data = ["models/modules.py", "models/as_published/*.py", n_grams]
    made_by = modules_digest(*modules, data=data)
    return _digest({"made_by": made_by, "torch": release("torch")})


def _digest(what: dict) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
