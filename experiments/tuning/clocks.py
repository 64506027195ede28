"""What times a tile: the card, or in rehearsals and tests a stand-in that needs none.

A clock is opened for an entry and its current tile, in the process of a race, and gives
sample(tile, count) -> ms of each of count passes; `Wrong` where the tile's result is not that
of the current one. It names the card, for tables and journals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from experiments import cuda_timer
from experiments.tuning.plan import Entry, call_of
from models.kernels.calls import problem

Sample = Callable[[object, int], list[float]]


class Wrong(Exception):
    """A tile's result is not that of the current one, to rounding."""


@dataclass(frozen=True)
class OnCard:
    """Whole passes by `cuda_timer.Timer`, as cases are timed. name: of the card."""

    name: str
    device: str = "cuda"

    def __call__(self, entry: Entry, current) -> Sample:
        from models.kernels import tiles

        def forced(tile):
            return tiles.forced(entry.table, entry.kernel, tile)

        call = problem(call_of(entry), self.device)
        with forced(current):
            expected = call()
        card, timers = cuda_timer.Card(), {}

        def sample(tile, count: int) -> list[float]:
            with forced(tile):
                if tile not in timers:
                    if not all(map(close, call(), expected)):
                        raise Wrong("its result is not that of the current tile")
                    timers[tile] = cuda_timer.Timer(call, card, warm_ups=1)
                return [timers[tile].sample() for _ in range(count)]

        return sample


@dataclass(frozen=True)
class StandIn:
    """Times that follow from the tile alone, by which few tables have the fastest: 64 x 64."""

    name: str = "stand-in"

    def __call__(self, entry: Entry, current) -> Sample:
        def sample(tile, count: int) -> list[float]:
            miss = abs(tile.block_m * tile.block_n - 64 * 64) / (64 * 64)
            return [1.0 + miss + tile.warps / 100 + abs(tile.stages - 2) / 1000] * count

        return sample


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results are the same to rounding."""
    # Other tiles sum in another order: in float32 over 32k tokens some 1e-6.
    finite, allowed = expected.isfinite(), max(torch.finfo(got.dtype).eps, 4e-6)
    if not torch.equal(finite, got.isfinite()):
        return False
    got, expected = got[finite].float(), expected[finite].float()
    error, size = (x.square().mean().sqrt() for x in (got - expected, expected))
    return bool(error <= allowed * size)


def card_at_hand() -> tuple[int, str]:
    """Compute capability and name of the card, asked in a process of its own.

    The caller's stays without CUDA, so that it may fork.
    """
    from multiprocessing import get_context

    with contextlib.closing(get_context("fork").Pool(1)) as pool:
        return pool.apply(_card)


def _card() -> tuple[int, str]:
    major, minor = torch.cuda.get_device_capability("cuda")
    return 10 * major + minor, torch.cuda.get_device_name("cuda")
