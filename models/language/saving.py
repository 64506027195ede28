"""A model in a folder: `model.safetensors`, its weights and configuration, and `config.json`.

The latter is the configuration once more, to be looked at: a model is one file, so that whenever a
process is killed it is the new one or the one before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from models.language.config import LongNetConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_KIND, _CONFIG = "model", "config"


def write(folder: str | Path, kind: str, config: LongNetConfig, state: dict) -> None:
    """Write a model; what `read` gives is all of it or what it gave before.

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
    metadata = {"format": "pt", _KIND: kind, _CONFIG: config.to_json()}
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata))
    _replace(folder / CONFIG, lambda path: path.write_text(config.to_json(), encoding="utf-8"))


def read(
    folder: str | Path, kind: str, device: torch.device | str | None
) -> tuple[LongNetConfig, dict[str, torch.Tensor]]:
    """Read what `write` wrote.

    Args:
        folder: with the weights.
        kind: name of the model's class.
        device: of the tensors; None for the CPU.

    Returns:
        The configuration, and name -> tensor.

    Raises:
        ValueError: where the folder holds a model of another class, or a bad configuration.
        FileNotFoundError: where there are no weights.
        ModuleNotFoundError: without the package safetensors.
    """
    from safetensors import safe_open

    folder = Path(folder)
    with safe_open(folder / WEIGHTS, "pt", device=str(device or "cpu")) as opened:
        metadata = opened.metadata() or {}
        if metadata.get(_KIND) != kind or _CONFIG not in metadata:
            found = metadata.get(_KIND, "model of another kind")
            raise ValueError(f"folder={str(folder)!r} holds a {found}: expected a {kind}")
        config = LongNetConfig.from_json(metadata[_CONFIG])
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
