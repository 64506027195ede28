"""Where a streamed call reads q, k and v from, chunk by chunk: a generator, files, host memory.

A source has `batch`, `seq_len`, `heads`, `kv_heads`, `head_dim`, `dtype`, `device`, and
`read(start, stop)`, which returns q (B, C, H, D) and k, v (B, C, Hkv, D) of the tokens from `start`
to before `stop`, on the device. They are valid until the next read, which reuses the buffers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from models.arrays import ArrayLike, as_tensor, check_array, float_dtype
from models.errors import as_integer
from models.prefetch import Prefetcher
from models.qkv import DTYPES, check_qkv, check_same_length


class _Source:
    """The shape of a sequence; subclasses have `_read`."""

    def __init__(self, batch, seq_len, heads, kv_heads, head_dim, dtype, device):
        self.batch = as_integer("batch", batch, least=0)
        self.seq_len = as_integer("seq_len", seq_len)
        self.heads, self.kv_heads = as_integer("heads", heads), as_integer("kv_heads", kv_heads)
        self.head_dim = as_integer("head_dim", head_dim)
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={kv_heads}: expected a divisor of heads={heads}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype}: expected float64, 32, 16 or bfloat16")
        self.dtype, self.device = dtype, _device(device)

    def read(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A chunk of the sequence.

        Args:
            start: first token.
            stop: the token after the last.

        Returns:
            q (B, C, H, D) and k, v (B, C, Hkv, D), valid until the next read.

        Raises:
            ValueError: outside of the sequence.
        """
        try:
            first, last = as_integer("start", start, least=0), as_integer("stop", stop)
        except ValueError:
            first = last = 0
        if not first < last <= self.seq_len:
            raise ValueError(
                f"start={start!r}, stop={stop!r}: "
                f"expected 0 <= start < stop <= {self.seq_len}, integers"
            )
        return self._read(first, last)


def _device(device) -> torch.device:
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={device!r}: expected a CPU or CUDA device: {reason}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r}: expected a CPU or CUDA device")
    return found


class CheckedSource(_Source):
    """Any object with a source's attributes and `read`, checked at each read.

    Args:
        source: the object.

    Raises:
        ValueError: where attributes are missing or wrong; in `read`, where the result is not
            q, k, v of these tokens in the source's dtype and on its device.
    """

    def __init__(self, source: object):
        names = ("batch", "seq_len", "heads", "kv_heads", "head_dim", "dtype", "device")
        missing = [name for name in (*names, "read") if not hasattr(source, name)]
        if missing:
            raise ValueError(
                f"source={type(source).__name__}: expected one of models.sources, "
                f"it has no {', '.join(missing)}"
            )
        try:
            super().__init__(*(getattr(source, name) for name in names))
        except ValueError as error:
            raise ValueError(f"source.{error}") from None
        self._source = source

    def _read(self, start, stop):
        tensors = self._source.read(start, stop)
        call = f"source.read({start}, {stop})"
        if not isinstance(tensors, tuple | list) or len(tensors) != 3:
            raise ValueError(f"{call} gave {type(tensors).__name__}: expected q, k and v")
        heads = (self.heads, self.kv_heads, self.kv_heads)
        for name, x, own_heads in zip("qkv", tensors, heads, strict=True):
            shape = (self.batch, stop - start, own_heads, self.head_dim)
            expected, got = (shape, self.dtype, self.device), type(x).__name__
            if isinstance(x, torch.Tensor) and x.layout == torch.strided and not x.is_nested:
                got = tuple(x.shape), x.dtype, x.device
            if got != expected:
                raise ValueError(f"{call} gave {name} as {got}: expected {expected}")
        return tuple(tensors)


class GeneratedSource(_Source):
    """Standard normal values that depend on the seed and on the token, not on the chunks read.

    The tokens are cut into blocks; the values of a block come from a generator on the device
    seeded by (seed, tensor, block), so that any part of any length can be made again.

    Args:
        seq_len: N.
        batch: B.
        heads: H.
        kv_heads: Hkv, a divisor of H; None for H.
        head_dim: D.
        dtype: float64, float32, float16 or bfloat16.
        device: CPU or CUDA; each kind has values of its own.
        seed: an integer >= 0.
        block: tokens per block.

    Raises:
        ValueError: on bad arguments.
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
        kv_heads = heads if kv_heads is None else kv_heads
        super().__init__(batch, seq_len, heads, kv_heads, head_dim, dtype, device)
        self.seed, self.block = as_integer("seed", seed, least=0), as_integer("block", block)
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
        # (blocks, tokens, B, H, D), so that a block is contiguous in memory at any batch.
        return tuple(x.flatten(0, 1)[tokens].transpose(0, 1) for x in self._buffers)

    def _empty(self, blocks: int, heads: int) -> torch.Tensor:
        shape = (blocks, self.block, self.batch, heads, self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class HostSource(_Source):
    """Tensors or arrays in host memory, or on disk: h5py datasets, zarr arrays.

    Args:
        q: (B, N, H, D): a tensor of any strides, a NumPy array, or anything with `shape`, `dtype`
            and slices that NumPy reads, of which only the current chunk is read.
        k, v: (B, N, Hkv, D), likewise.
        device: where the chunks go; to CUDA the next is copied while one is worked on.

    Raises:
        ValueError: naming the argument that is no such array.
    """

    def __init__(
        self, q: ArrayLike, k: ArrayLike, v: ArrayLike, device: str | torch.device = "cpu"
    ):
        arrays = {"q": q, "k": k, "v": v}
        described = [_described(name, x) for name, x in arrays.items()]
        super().__init__(*_sizes(*described), device)
        self._whole = [x.detach() if isinstance(x, torch.Tensor) else x for x in arrays.values()]
        self._prefetcher = _prefetcher(self)

    def _cut(self, start, stop):
        return [as_tensor(x[:, start:stop]) for x in self._whole]

    def _read(self, start, stop):
        return tuple(
            self._prefetcher.read(start, stop) if self._prefetcher else self._cut(start, stop)
        )


class MappedSource(_Source):
    """Three `.npy` files, of which only the current chunk is in memory.

    Args:
        q: path of an array (B, N, H, D), float64, float32 or float16, of either byte order.
        k, v: paths of arrays (B, N, Hkv, D), likewise.
        device: where the chunks go; to CUDA the next is read and copied while one is worked on.

    Raises:
        ValueError: naming the file that is no such array, also in `read`, where it has been
            replaced since.
    """

    def __init__(
        self,
        q: str | os.PathLike,
        k: str | os.PathLike,
        v: str | os.PathLike,
        device: str | torch.device = "cpu",
    ):
        self._files, described = [], []
        for name, path in {"q": q, "k": k, "v": v}.items():
            if not isinstance(path, str | os.PathLike):
                raise ValueError(f"{name}={type(path).__name__}: expected the path of a .npy file")
            array = _mapped(Path(path))
            self._files.append((Path(path), array.shape, array.dtype))
            described.append(_described(str(path), array))
        super().__init__(*_sizes(*described), device)
        self._prefetcher = _prefetcher(self)
        self._buffers: list[torch.Tensor] = []

    def _cut(self, start, stop):
        # Mapped anew each time: pages of a closed mapping do not count as this process's memory.
        parts = []
        for path, shape, dtype in self._files:
            array = _mapped(path)
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(
                    f"{path}: holds {array.dtype} {array.shape}: expected {dtype} {shape}, "
                    "as when it was opened"
                )
            parts.append(as_tensor(array[:, start:stop]))
        return parts

    def _read(self, start, stop):
        if self._prefetcher:
            return tuple(self._prefetcher.read(start, stop))
        parts = self._cut(start, stop)
        if [x.shape for x in self._buffers] != [x.shape for x in parts]:
            self._buffers = [torch.empty(x.shape, dtype=x.dtype) for x in parts]
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part)
        return tuple(self._buffers)


def _prefetcher(source: HostSource | MappedSource) -> Prefetcher | None:
    is_cuda = source.device.type == "cuda"
    return Prefetcher(source._cut, source.seq_len, source.device) if is_cuda else None


def _mapped(path: Path) -> np.memmap:
    try:
        # Copy on write: PyTorch warns about read-only arrays.
        return np.lib.format.open_memmap(path, mode="c")
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{path}: expected a .npy file, whole, of one array: {error}") from None


def _described(name: str, array) -> torch.Tensor:
    """A tensor of an array's shape and dtype that takes no memory; ValueError where it has none."""
    check_array(name, array, "__getitem__")
    dtype = float_dtype(name, array)
    if isinstance(array, torch.Tensor) and array.device.type != "cpu":
        raise ValueError(f"{name} is on {array.device}: expected host memory")
    return torch.empty((), dtype=dtype).expand(tuple(array.shape))


def _sizes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple:
    check_qkv(q, k, v)
    check_same_length(q, k)
    batch, seq_len, heads, head_dim = q.shape
    return batch, seq_len, heads, k.shape[2], head_dim, q.dtype
