"""Where a streamed call puts its results, chunk by chunk: a function, or arrays of any kind.

A sink is called with (start, out, lse) for each chunk in order. If it has
`prepare(batch, seq_len, heads, head_dim, dtype, lse_dtype)`, that is called before anything is
read, so that a sink that cannot hold the results is refused at once and not after hours.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from models.arrays import ArrayLike, check_array, float_dtype

Sink = Callable[[int, torch.Tensor, torch.Tensor], None]


class StoreInto:
    """A sink that writes every chunk to its place in arrays, by slice assignment.

    The arrays' dtypes are those of the results or wider, so that no number changes: float16 and
    bfloat16 go into float32 and float64 too, float32 into float64. bfloat16 itself, which NumPy
    lacks, goes into tensors.

    Args:
        out: (B, N, H, D): a tensor on any device, a NumPy array or memory map, or anything with
            `shape`, `dtype` and `array[:, start:stop] = values` for NumPy values, such as an h5py
            dataset or a zarr array.
        lse: (B, H, N), likewise; None to drop the LSE.

    Raises:
        ValueError: here or in `prepare`, where an array cannot be written to (read-only, copy on
            write, requiring gradients, elements that share memory) or has another shape or dtype.
    """

    def __init__(self, out: ArrayLike, lse: ArrayLike | None = None):
        self._arrays = out, lse
        self._targets = _targets(out, lse)

    def prepare(
        self,
        batch: int,
        seq_len: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        lse_dtype: torch.dtype,
    ) -> None:
        """Check that the arrays can hold the results.

        Args:
            batch, seq_len, heads, head_dim: B, N, H, D.
            dtype: of out.
            lse_dtype: of the LSE.

        Raises:
            ValueError: where they cannot.
        """
        # Checked again: since then a file may have been closed, or memory made read-only.
        self._targets = _targets(*self._arrays)
        shapes = (batch, seq_len, heads, head_dim), (batch, heads, seq_len)
        for target, shape, own in zip(self._targets, shapes, (dtype, lse_dtype), strict=False):
            target.check_holds(shape, own)

    def __call__(self, start: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Write a chunk.

        Args:
            start: its first token.
            out: (B, C, H, D).
            lse: (B, H, C).

        Raises:
            ValueError: where it does not fit into the arrays.
        """
        for target, values in zip(self._targets, (out, lse), strict=False):
            target.write(start, values)


def _targets(out, lse) -> list[_Target]:
    """The targets of out and, unless None, of the LSE; ValueError where one cannot be written."""
    if lse is None:
        return [_Target("out", out, token_dim=1)]
    targets = [_Target("out", out, token_dim=1), _Target("lse", lse, token_dim=2)]
    if _share_memory(out, lse):
        raise ValueError(f"lse={_kind(lse)}: expected memory of its own, not shared with out")
    return targets


class _Target:
    """An array (B, N, H, D) or (B, H, N) that is written to along its tokens."""

    def __init__(self, name: str, array, token_dim: int):
        self._name, self._array, self._token_dim = name, array, token_dim
        check_array(name, array, "__setitem__")
        self._dtype = float_dtype(name, array)
        self._layout = ("(batch, tokens, heads, head_dim)", "(batch, heads, tokens)")[token_dim - 1]
        self._shape = tuple(array.shape)
        if len(self._shape) != 5 - token_dim:
            raise ValueError(f"{name}.shape={self._shape}: expected {self._layout}")
        reason = _why_not_writable(array)
        if reason:
            raise ValueError(f"{name}={_kind(array)}: {reason}")

    def check_holds(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """ValueError unless values of this shape and dtype fill the array, unchanged."""
        if self._shape != shape:
            raise ValueError(
                f"{self._name}.shape={self._shape}: expected {shape}, {self._layout} of the results"
            )
        if torch.promote_types(dtype, self._dtype) != self._dtype:
            raise ValueError(
                f"{self._name}.dtype={self._array.dtype}: expected {dtype} or a wider float, "
                "to hold the results as they are"
            )

    def write(self, start: int, values: torch.Tensor) -> None:
        tokens = slice(start, start + values.shape[self._token_dim])
        shape = list(values.shape)
        shape[self._token_dim] = self._shape[self._token_dim]
        # Assignment would broadcast one head or batch element over all.
        self.check_holds(tuple(shape), values.dtype)
        if not 0 <= start <= tokens.stop <= self._shape[self._token_dim]:
            raise ValueError(f"start={start}: expected tokens within {self._name}, {self._shape}")
        place = (*self._token_dim * [slice(None)], tokens)
        values = values.detach()
        if isinstance(self._array, torch.Tensor):
            self._array[place].copy_(values)
        else:
            self._array[place] = values.to("cpu", self._dtype).contiguous().numpy()


def _why_not_writable(array) -> str | None:
    """Why a write to an array of any kind would fail or be lost, or None."""
    if isinstance(array, torch.Tensor):
        if array.requires_grad:
            return "requires grad: expected a tensor that does not, as there are no gradients here"
        if array.is_inference() and not torch.is_inference_mode_enabled():
            return "is of inference mode, outside of which it is read-only"
    else:
        in_file = getattr(getattr(array, "file", None), "mode", None)
        locked = getattr(array, "read_only", False) is True or in_file == "r"
        if locked or not getattr(getattr(array, "flags", None), "writeable", True):
            return "is read-only: expected an array that can be written to"
        if _is_copied_on_write(array):
            return (
                "is a memory map of mode 'c', and writing to it leaves the file as it is: use 'r+'"
            )
    if _overlaps_itself(array):
        return "has elements that share memory: expected each to have its own"
    if _is_of_read_only_pages(array):
        return "lies in a read-only memory map: expected one of mode 'r+'"
    return None


def _is_copied_on_write(array) -> bool:
    """Whether an array is, or is a view of, a memory map of mode "c"."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.mode == "c":
            return True
        array = array.base
    return False


def _is_of_read_only_pages(array) -> bool:
    """Whether a write would end the process: a tensor does not know that its memory is read-only.

    The operating system copies the first element out and back: where pages are read-only that is
    an error it returns, not a segmentation fault.
    """
    memory = _memory(array)
    is_on_device = isinstance(array, torch.Tensor) and array.device.type != "cpu"
    if memory is None or is_on_device:
        return False
    first = memory[(slice(1),) * memory.ndim].reshape(1).view(np.uint8)
    reader, writer = os.pipe()
    try:
        os.write(writer, first)
        return os.readv(reader, [first]) != first.size
    except OSError:
        return True
    finally:
        os.close(reader)
        os.close(writer)


def _overlaps_itself(array) -> bool:
    """Whether two elements may share memory, as in an expanded tensor."""
    memory = _memory(array)
    if memory is None:
        return False
    reach = memory.itemsize
    for stride, size in sorted(zip(map(abs, memory.strides), memory.shape, strict=True)):
        if size > 1 and stride < reach:
            return True
        reach += (size - 1) * stride
    return False


def _share_memory(a, b) -> bool:
    a, b = _memory(a), _memory(b)
    return a is not None and b is not None and np.shares_memory(a, b)


class _Place:
    """The address and strides of a tensor, on any device, for NumPy's comparison of memory."""

    def __init__(self, x: torch.Tensor):
        size = x.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (x.data_ptr(), False),
            "shape": tuple(x.shape),
            "strides": tuple(size * stride for stride in x.stride()),
            "typestr": f"|V{size}",
        }


def _memory(array) -> np.ndarray | None:
    """A NumPy array in the memory of `array`, only to compare addresses: no element may be read.

    None where there is no memory, or its address is not known.
    """
    if isinstance(array, torch.Tensor):
        return np.asarray(_Place(array)) if array.numel() else None
    return array if isinstance(array, np.ndarray) and array.size else None


def _kind(array) -> str:
    return f"{type(array).__name__} {tuple(array.shape)}"
