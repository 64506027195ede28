"""Prefetching: while a chunk is worked on, the next is copied from host memory to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class _Slot:
    """Buffers of one chunk: page-locked host memory, device memory, the event of its arrival."""

    def __init__(self, parts: Sequence[torch.Tensor], device: torch.device):
        self.host = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in parts]
        self.device = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in parts]
        self.arrived = torch.cuda.Event()


class Prefetcher:
    """Chunks of a sequence in host memory, on a CUDA device.

    Chunks are read one after the other, all of one length but the last: the one expected next is
    copied on a stream of its own. Two buffers alternate.

    Args:
        cut: (start, stop) -> the tensors of these tokens, in host memory.
        seq_len: tokens of the sequence.
        device: the CUDA device.
    """

    def __init__(
        self,
        cut: Callable[[int, int], Sequence[torch.Tensor]],
        seq_len: int,
        device: torch.device,
    ):
        self._cut, self._seq_len, self._device = cut, seq_len, device
        self._stream = torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1)
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._turn = 0
        self._next: tuple[tuple[int, int], Future] | None = None

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        """A chunk, and the start of the next one's copy.

        Args:
            start: first token.
            stop: the token after the last.

        Returns:
            The tensors of `cut` on the device, valid until the next call.
        """
        now = torch.cuda.current_stream(self._device)
        pending, self._next = self._next, None
        if pending is None or pending[0] != (start, stop):
            if pending is not None:
                pending[1].result()
            pending = (start, stop), self._load(start, stop, now.record_event())
        slot = pending[1].result()
        now.wait_event(slot.arrived)
        following = stop, min(self._seq_len, 2 * stop - start)
        if stop < self._seq_len:
            # All work on the other buffers was queued on this stream before now.
            self._next = following, self._load(*following, now.record_event())
        return slot.device

    def _load(self, start: int, stop: int, free: torch.cuda.Event) -> Future:
        self._turn ^= 1
        return self._thread.submit(self._copy, self._turn, start, stop, free)

    def _copy(self, turn: int, start: int, stop: int, free: torch.cuda.Event) -> _Slot:
        parts = self._cut(start, stop)
        slot = self._slots.get((turn, stop - start))
        if slot is None:
            slot = self._slots[turn, stop - start] = _Slot(parts, self._device)
        slot.arrived.synchronize()
        for host, part in zip(slot.host, parts, strict=True):
            host.copy_(part)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            for device, host in zip(slot.device, slot.host, strict=True):
                device.copy_(host, non_blocking=True)
            slot.arrived.record()
        return slot
