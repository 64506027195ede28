"""Where a streamed call reads q, k and v from, chunk by chunk: a generator, files, host memory.

A source has `batch`, `seq_len`, `heads`, `kv_heads`, `head_dim`, `dtype`, `device`, and
`read(start, stop)`, which gives q (B, C, H, D) and k, v (B, C, Hkv, D) of the tokens from `start`
to before `stop`, on the device. What it gives is valid until the next read: buffers are used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from models.errors import DTYPES, check_qkv, check_same_length


class _Source:
    """The shape of a sequence, and the check of what is asked of it."""

    def __init__(self, batch, seq_len, heads, kv_heads, head_dim, dtype, device):
        sizes = {"batch": batch, "seq_len": seq_len, "heads": heads}
        sizes |= {"kv_heads": kv_heads, "head_dim": head_dim}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer >= 1")
            setattr(self, name, value)
        if heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads}: expected a divisor of heads={heads}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype}: expected float64, 32, 16 or bfloat16")
        self.dtype, self.device = dtype, torch.device(device)

    def read(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v of the tokens from `start` to before `stop`; ValueError outside the sequence."""
        if not 0 <= start < stop <= self.seq_len:
            raise ValueError(
                f"start={start}, stop={stop}: expected 0 <= start < stop <= {self.seq_len}"
            )
        return self._read(start, stop)


class GeneratedSource(_Source):
    """Standard normal values that depend on the seed and on the token, not on how they are read.

    The tokens are cut into blocks; the values of a block come from a generator of the device
    keyed by (seed, tensor, block), so that any part of any length can be made again.
    """

    def __init__(
        self,
        seq_len: int,
        *,
        batch: int = 1,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        seed: int = 0,
        block: int = 32768,
    ):
        super().__init__(batch, seq_len, heads, kv_heads or heads, head_dim, dtype, device)
        if type(block) is not int or block < 1:
            raise ValueError(f"block={block!r}: expected an integer >= 1")
        self.seed, self.block = seed, block
        self.heads_of_tensors = (self.heads, self.kv_heads, self.kv_heads)
        self._generator = torch.Generator(self.device)
        self._buffers: list[torch.Tensor] = []

    def _read(self, start, stop):
        first, last = start // self.block, -(-stop // self.block)
        blocks = last - first
        if not self._buffers or self._buffers[0].shape[0] < blocks:
            self._buffers = [self._empty(blocks, h) for h in self.heads_of_tensors]
        for tensor, buffer in enumerate(self._buffers):
            for place in range(blocks):
                key = np.random.SeedSequence((self.seed, tensor, first + place))
                self._generator.manual_seed(int(key.generate_state(1, np.uint64)[0]))
                buffer[place].normal_(generator=self._generator)
        tokens = slice(start - first * self.block, stop - first * self.block)
        # (blocks, tokens, B, H, D), so that a block is one stretch of memory at any batch.
        return tuple(x.flatten(0, 1)[tokens].transpose(0, 1) for x in self._buffers)

    def _empty(self, blocks: int, heads: int) -> torch.Tensor:
        shape = (blocks, self.block, self.batch, heads, self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class HostSource(_Source):
    """Tensors in host memory; on a CUDA device the next chunk is copied while one is worked on.

    q: (B, N, H, D). k, v: (B, N, Hkv, D). device: where the chunks go.
    """

    def __init__(self, q, k, v, device: str | torch.device = "cpu"):
        check_qkv(q, k, v)
        check_same_length(q, k)
        if q.device.type != "cpu":
            raise ValueError(f"q is on {q.device}: expected tensors in host memory")
        batch, seq_len, heads, head_dim = q.shape
        super().__init__(batch, seq_len, heads, k.shape[2], head_dim, q.dtype, device)
        self._whole = [x.detach() for x in (q, k, v)]
        self._ahead = _Ahead(self._cut, self) if self.device.type == "cuda" else None

    def _cut(self, start, stop):
        return [x[:, start:stop] for x in self._whole]

    def _read(self, start, stop):
        return tuple(self._ahead.read(start, stop) if self._ahead else self._cut(start, stop))


class MappedSource(_Source):
    """Three `.npy` files, of which only the chunk at hand is in memory.

    q: path of an array (B, N, H, D); k, v: of arrays (B, N, Hkv, D), float64, 32 or 16.
    device: where the chunks go; on CUDA the next is read and copied while one is worked on.
    Raises ValueError where a file is no such array, naming it.
    """

    def __init__(self, q: Path, k: Path, v: Path, device: str | torch.device = "cpu"):
        self._paths = [Path(path) for path in (q, k, v)]
        # Never filled: these carry the shapes.
        shapes = [_described(path) for path in self._paths]
        check_qkv(*shapes)
        check_same_length(*shapes[:2])
        batch, seq_len, heads, head_dim = shapes[0].shape
        super().__init__(
            batch, seq_len, heads, shapes[1].shape[2], head_dim, shapes[0].dtype, device
        )
        self._ahead = _Ahead(self._cut, self) if self.device.type == "cuda" else None
        self._buffers: list[torch.Tensor] = []

    def _cut(self, start, stop):
        # Mapped anew each time: the pages of a mapping that is gone are nobody's memory.
        return [_mapped(path)[:, start:stop] for path in self._paths]

    def _read(self, start, stop):
        if self._ahead:
            return tuple(self._ahead.read(start, stop))
        parts = self._cut(start, stop)
        if [x.shape for x in self._buffers] != [x.shape for x in parts]:
            self._buffers = [torch.empty(x.shape, dtype=x.dtype) for x in parts]
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part)
        return tuple(self._buffers)


def _mapped(path: Path) -> torch.Tensor:
    # Copy on write: torch warns of tensors that must not be written to.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _described(path: Path) -> torch.Tensor:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a .npy file: {error}") from None
    if array.dtype not in (np.float64, np.float32, np.float16):
        raise ValueError(f"{path}: holds {array.dtype}: expected float64, float32 or float16")
    return torch.from_numpy(np.empty(0, array.dtype)).new_empty(array.shape, device="meta")


class _Slot:
    """One chunk on its way: page-locked host memory, device memory, and when it has arrived."""

    def __init__(self, parts: Sequence[torch.Tensor], device: torch.device):
        self.host = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in parts]
        self.device = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in parts]
        self.arrived = torch.cuda.Event()


class _Ahead:
    """Chunks of host memory on a CUDA device, the next one copied on a stream of its own.

    cut(start, stop): the tensors of a chunk in host memory.
    """

    def __init__(self, cut, source: _Source):
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
