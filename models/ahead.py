"""Chunks of host memory on their way to a CUDA device, the next one copied ahead."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class _Slot:
    """One chunk on its way: page-locked host memory, device memory, and when it has arrived."""

    def __init__(self, parts: Sequence[torch.Tensor], device: torch.device):
        self.host = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in parts]
        self.device = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in parts]
        self.arrived = torch.cuda.Event()


class Ahead:
    """Chunks of host memory on a CUDA device, the next one copied on a stream of its own.

    cut(start, stop): the tensors of a chunk in host memory. source: of them, with the device.
    """

    def __init__(self, cut, source):
        self._cut, self._source = cut, source
        self._stream = torch.cuda.Stream(source.device)
        self._thread = ThreadPoolExecutor(1)
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._turn = 0
        self._coming: tuple[tuple[int, int], Future] | None = None

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        now = torch.cuda.current_stream(self._source.device)
        coming, self._coming = self._coming, None
        if coming is None or coming[0] != (start, stop):
            if coming is not None:
                coming[1].result()
            coming = (start, stop), self._load(start, stop, now.record_event())
        slot = coming[1].result()
        now.wait_event(slot.arrived)
        following = stop, min(self._source.seq_len, 2 * stop - start)
        if stop < self._source.seq_len:
            # All work on the other slot was put on this stream before now.
            self._coming = following, self._load(*following, now.record_event())
        return slot.device

    def _load(self, start: int, stop: int, free: torch.cuda.Event) -> Future:
        self._turn ^= 1
        return self._thread.submit(self._copy, self._turn, start, stop, free)

    def _copy(self, turn: int, start: int, stop: int, free: torch.cuda.Event) -> _Slot:
        parts = self._cut(start, stop)
        slot = self._slots.get((turn, stop - start))
        if slot is None:
            slot = self._slots[turn, stop - start] = _Slot(parts, self._source.device)
        slot.arrived.synchronize()
        for host, part in zip(slot.host, parts, strict=True):
            host.copy_(part)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            for device, host in zip(slot.device, slot.host, strict=True):
                device.copy_(host, non_blocking=True)
            slot.arrived.record()
        return slot
