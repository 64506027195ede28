"""What a device does at best, measured beside every case: matrix products and copies.

A case's FLOP/s and bytes/s are set against these and not against a data sheet, so that a
clock that is capped, a busy neighbour or a slow dtype lowers the ceiling too. Clocks settle within
a minute or drift over several, so a process that sees many cases measures a dtype once per minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from experiments.measure import prepare

# Side of the matrices and bytes of the copy, both far beyond the device's caches, yet
# small enough to take a CPU about 0.1 s in all.
_SIDE = {"cpu": 512, "cuda": 8192}
_COPY_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
_MIN_REPEATS, _SECONDS = 5, 0.05
_STANDS_S = 60.0
# When, and what, by dtype.
_found: dict[str, tuple[float, dict]] = {}


def measure(dtype: str, device: str) -> dict:
    """The record's `ceilings` on `device` ("cpu" or "cuda"): the best of a few repeats each.

    matmul_flops_per_s: a square product in `dtype` in PyTorch's default precision.
    copy_bytes_per_s: a copy on the device, bytes read plus bytes written. What this process
    found of a GPU less than a minute ago stands.
    """
    if device == "cpu":
        prepare(device)
        return _measure(dtype, device)
    when, found = _found.get(dtype, (-_STANDS_S, None))
    if found is None or time.monotonic() - when >= _STANDS_S:
        found = _measure(dtype, device)
        _found[dtype] = (time.monotonic(), found)
    return dict(found)


def _measure(dtype: str, device: str) -> dict:
    return of_seconds(rates_in_seconds(getattr(torch, dtype), device), device)


def of_seconds(seconds: Mapping[str, float], device: str) -> dict:
    """The record's `ceilings` where a product and a copy took `rates_in_seconds`."""
    return {
        "matmul_flops_per_s": 2 * _SIDE[device] ** 3 / seconds["matmul"],
        "copy_bytes_per_s": 2 * _COPY_BYTES[device] / seconds["copy"],
    }


def rates_in_seconds(dtype: torch.dtype, device: str) -> dict[str, float]:
    """What the product, "matmul", and the copy take at best."""
    side = _SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(_COPY_BYTES[device], dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return {
        "matmul": best_seconds(lambda: torch.matmul(a, b, out=product), device),
        "copy": best_seconds(lambda: target.copy_(source), device),
    }


def best_seconds(run: Callable[[], object], device: str) -> float:
    """The least of a few repeats, after one that is not counted."""
    seconds = _cuda_seconds if device == "cuda" else _cpu_seconds
    run()
    spent: list[float] = []
    while len(spent) < _MIN_REPEATS or sum(spent) < _SECONDS:
        spent.append(seconds(run))
    return min(spent)


def _cpu_seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3
