"""Where a streamed call reads q, k and v from, chunk by chunk: a generator, files, host memory.

A source has `batch`, `seq_len`, `heads`, `kv_heads`, `head_dim`, `dtype`, `device`, and
`read(start, stop)`, which gives q (B, C, H, D) and k, v (B, C, Hkv, D) of the tokens from `start`
to before `stop`, on the device. What it gives is valid until the next read: buffers are used again.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from models.ahead import Ahead
from models.arrays import as_tensor, check_array, float_dtype
from models.errors import DTYPES, as_integer, check_qkv, check_same_length


class _Source:
    """The shape of a sequence, and the check of what is asked of it."""

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
        """q, k, v of the tokens from `start` to before `stop`; ValueError outside the sequence."""
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
    """Any object with a source's attributes and `read`, held to what a source is.

    Raises ValueError on attributes that are missing or wrong, and, when it is read, on what is not
    q, k, v of the asked tokens in the dtype and on the device that it says.
    """

    def __init__(self, source):
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
        # (blocks, tokens, B, H, D), so that a block is one stretch of memory at any batch.
        return tuple(x.flatten(0, 1)[tokens].transpose(0, 1) for x in self._buffers)

    def _empty(self, blocks: int, heads: int) -> torch.Tensor:
        shape = (blocks, self.block, self.batch, heads, self.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class HostSource(_Source):
    """Tensors or arrays in host memory, or behind it: h5py datasets, zarr arrays.

    q: (B, N, H, D). k, v: (B, N, Hkv, D). Each is a tensor in any strides, a NumPy array, or has
    `shape`, `dtype` and slices that NumPy takes; of those only the chunk at hand is read. device:
    where the chunks go; on CUDA the next is copied while one is worked on.
    Raises ValueError where one is no such array, naming it.
    """

    def __init__(self, q, k, v, device: str | torch.device = "cpu"):
        arrays = {"q": q, "k": k, "v": v}
        described = [_described(name, x) for name, x in arrays.items()]
        super().__init__(*_sizes(*described), device)
        self._whole = [x.detach() if isinstance(x, torch.Tensor) else x for x in arrays.values()]
        self._ahead = Ahead(self._cut, self) if self.device.type == "cuda" else None

    def _cut(self, start, stop):
        return [as_tensor(x[:, start:stop]) for x in self._whole]

    def _read(self, start, stop):
        return tuple(self._ahead.read(start, stop) if self._ahead else self._cut(start, stop))


class MappedSource(_Source):
    """Three `.npy` files, of which only the chunk at hand is in memory.

    q: path of an array (B, N, H, D); k, v: of arrays (B, N, Hkv, D), float64, 32 or 16, of either
    byte order. device: where the chunks go; on CUDA the next is read and copied while one is
    worked on. Raises ValueError where a file is no such array, naming it, also in `read`, where
    it has been replaced by another since.
    """

    def __init__(self, q: Path, k: Path, v: Path, device: str | torch.device = "cpu"):
        self._files, described = [], []
        for name, path in {"q": q, "k": k, "v": v}.items():
            if not isinstance(path, str | os.PathLike):
                raise ValueError(f"{name}={type(path).__name__}: expected the path of a .npy file")
            array = _mapped(Path(path))
            self._files.append((Path(path), array.shape, array.dtype))
            described.append(_described(str(path), array))
        super().__init__(*_sizes(*described), device)
        self._ahead = Ahead(self._cut, self) if self.device.type == "cuda" else None
        self._buffers: list[torch.Tensor] = []

    def _cut(self, start, stop):
        # Mapped anew each time: the pages of a mapping that is gone are nobody's memory.
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
        if self._ahead:
            return tuple(self._ahead.read(start, stop))
        parts = self._cut(start, stop)
        if [x.shape for x in self._buffers] != [x.shape for x in parts]:
            self._buffers = [torch.empty(x.shape, dtype=x.dtype) for x in parts]
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part)
        return tuple(self._buffers)


def _mapped(path: Path) -> np.memmap:
    try:
        # Copy on write: PyTorch warns of arrays that must not be written to.
        return np.lib.format.open_memmap(path, mode="c")
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{path}: expected a .npy file, whole, of one array: {error}") from None


def _described(name: str, array) -> torch.Tensor:
    """A tensor of an array's shape and dtype that takes no memory; ValueError if it has none."""
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
