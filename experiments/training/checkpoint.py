"""Checkpoints of a training: files that are there whole or not at all, the last two of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from experiments.atomic_write import atomic_write

# The last one, and the one before, should a disk lose what it said it had.
KEPT = 2
_NAME = re.compile(r"step-(\d{8})\.pt")


def save(folder: Path, state: dict) -> Path:
    """Write a state as the checkpoint of its step, and delete all but the last KEPT.

    Args:
        folder: of checkpoints; made where it is not there.
        state: what `TrainingState.to_dict` gave.

    Returns:
        The file.

    Raises:
        OSError: where it cannot be written; the others are as before.
    """
    path = folder / f"step-{state['step']:08d}.pt"
    with atomic_write(path) as partial, partial.open("wb") as opened:
        torch.save(state, opened)
        opened.flush()
        # Its name must not reach the disk before what it holds.
        os.fsync(opened.fileno())
    for _, old in all_in(folder)[:-KEPT]:
        old.unlink()
    return path


def all_in(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of a folder's checkpoints, in the order of steps; none without a folder."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*.pt")]
    return sorted((int(match[1]), path) for match, path in found if match)


def load(path: Path) -> dict:
    """What `save` was given, on the CPU. Nothing in the file is run.

    Raises:
        ValueError: where it is no checkpoint, or a damaged one.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Of torch, pickle and zip files there are a dozen kinds.
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path}: cannot be read ({first}); without it, the training goes on from the "
            "checkpoint before"
        ) from None
    if not isinstance(state, dict) or state.keys() != {"step", "model", "optimiser"}:
        raise ValueError(f"{path}: expected a checkpoint with step, model and optimiser")
    return state
