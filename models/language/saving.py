"""A model in a folder: `config.json`, its configuration, and `model.safetensors`, its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from models.language.config import LongNetConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_KIND = "model"


def write(folder: str | Path, kind: str, config: LongNetConfig, state: dict) -> None:
    """Write a model; each file is complete or as it was before.

    Args:
        folder: made where it is missing.
        kind: name of the model's class, kept beside the weights.
        config: its configuration.
        state: name -> tensor.

    Raises:
        ModuleNotFoundError: without the package safetensors.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().contiguous() for name, x in state.items()}
    metadata = {"format": "pt", _KIND: kind}
    # Weights last: where a new folder has them, it is complete.
    _replace(folder / CONFIG, lambda path: path.write_text(config.to_json(), encoding="utf-8"))
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata))


def read(
    folder: str | Path, kind: str, device: torch.device | str | None
) -> tuple[LongNetConfig, dict[str, torch.Tensor]]:
    """Read what `write` wrote.

    Args:
        folder: with both files.
        kind: name of the model's class.
        device: of the tensors; None for the CPU.

    Returns:
        The configuration, and name -> tensor.

    Raises:
        ValueError: where the folder holds a model of another class, or a bad configuration.
        FileNotFoundError: where a file is missing.
        ModuleNotFoundError: without the package safetensors.
    """
    from safetensors import safe_open

    folder = Path(folder)
    config = LongNetConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    with safe_open(folder / WEIGHTS, "pt", device=str(device or "cpu")) as opened:
        found = (opened.metadata() or {}).get(_KIND)
        if found != kind:
            raise ValueError(f"folder={str(folder)!r} holds a {found}: expected a {kind}")
        return config, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a file beside `path`, and put it in its place when it is on disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        fill(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
