"""Arrays of any kind: tensors, NumPy's, and others that are sliced like them (h5py, zarr)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from models.qkv import DTYPES


class ArrayLike(Protocol):
    """A tensor, a NumPy array, or anything with their shape and dtype that is sliced like them."""

    shape: tuple[int, ...]
    dtype: Any


# NumPy's float types; a big-endian float32 is called float32 too.
_OF_NUMPY = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


def float_dtype(name: str, array: ArrayLike) -> torch.dtype:
    """The dtype of an array as PyTorch's.

    Args:
        name: of the argument, for the message.
        array: of any kind.

    Returns:
        torch.float64, float32, float16 or bfloat16.

    Raises:
        ValueError: unless it is float64, float32 or float16, or a tensor's bfloat16.
    """
    if isinstance(array, torch.Tensor):
        if array.dtype in DTYPES:
            return array.dtype
    elif (known := _OF_NUMPY.get(_numpy_name(array.dtype))) is not None:
        return known
    raise ValueError(
        f"{name}.dtype={array.dtype}: expected float64, 32 or 16 (of a tensor bfloat16 too)"
    )


def _numpy_name(dtype) -> str | None:
    try:
        return None if dtype is None else np.dtype(dtype).name
    except TypeError:
        return None


def check_array(name: str, array: object, method: str) -> None:
    """Check that an argument is an array whose slices can be read or written.

    Args:
        name: of the argument, for the message.
        array: anything.
        method: "__getitem__" or "__setitem__".

    Raises:
        ValueError: unless it has shape, dtype and `method`, and holds all its elements.
    """
    if isinstance(array, torch.Tensor):
        kind = "nested" if array.is_nested else array.layout
        if kind != torch.strided:
            raise ValueError(f"{name} is {kind}: expected a strided tensor")
        if array.is_meta:
            raise ValueError(f"{name} is on meta: expected a tensor that holds values")
    expected = f"{name}={type(array).__name__}: expected an array, with shape, dtype and {method}"
    try:
        is_array = all(hasattr(array, one) for one in ("shape", "dtype", method))
    except RuntimeError as error:  # as of an h5py dataset whose file is closed
        raise ValueError(f"{expected}: {error}") from None
    if not is_array:
        raise ValueError(expected)
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name}=MaskedArray: expected an array without masked elements")


def as_tensor(values: ArrayLike) -> torch.Tensor:
    """A tensor of the values of an array.

    Args:
        values: of any kind.

    Returns:
        In the same memory where PyTorch accepts that, else a copy.
    """
    if isinstance(values, torch.Tensor):
        return values
    array = np.asarray(values)
    # PyTorch warns about read-only arrays and refuses the others.
    is_accepted = array.flags.writeable and array.flags.aligned and array.dtype.isnative
    if not is_accepted or any(s < 0 or s % array.itemsize for s in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)
