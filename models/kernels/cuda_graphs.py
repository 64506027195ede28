"""CUDA graphs: tensors that a captured launch reads must outlive the graph, which owns none."""

from __future__ import annotations

import torch

_KEPT: dict[int, torch.Tensor] = {}


def is_capturing(device: torch.device) -> bool:
    """Whether launches on the current stream of `device` go into a graph, to be run later."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def keep(*tables: torch.Tensor) -> None:
    """While a graph is captured, hold these for good: nothing tells when the graph is dropped."""
    if is_capturing(tables[0].device):
        _KEPT.update({id(table): table for table in tables})
