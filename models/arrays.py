"""Arrays of any kind: tensors, NumPy's, and what is sliced as these are (h5py, zarr)."""

from __future__ import annotations

import numpy as np
import torch

from models.errors import DTYPES

# What NumPy has; a big-endian float32 is called float32 too.
_OF_NUMPY = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


def float_dtype(name: str, array) -> torch.dtype:
    """The dtype of an array as PyTorch's; ValueError unless it is a float dtype that is taken."""
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


def check_array(name: str, array, ability: str) -> None:
    """ValueError unless `array` has shape, dtype and `ability`, and holds all its elements.

    ability: the method that slices are read or written with.
    """
    if isinstance(array, torch.Tensor):
        kind = "nested" if array.is_nested else array.layout
        if kind != torch.strided:
            raise ValueError(f"{name} is {kind}: expected a strided tensor")
        if array.is_meta:
            raise ValueError(f"{name} is on meta: expected a tensor that holds values")
    expected = f"{name}={type(array).__name__}: expected an array, with shape, dtype and {ability}"
    try:
        is_array = all(hasattr(array, one) for one in ("shape", "dtype", ability))
    except RuntimeError as error:  # as of an h5py dataset whose file is closed
        raise ValueError(f"{expected}: {error}") from None
    if not is_array:
        raise ValueError(expected)
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name}=MaskedArray: expected an array in which all elements count")


def as_tensor(values) -> torch.Tensor:
    """A tensor of the values of an array, in the same memory where PyTorch takes that."""
    if isinstance(values, torch.Tensor):
        return values
    array = np.asarray(values)
    # A read-only one PyTorch warns of; the others it refuses.
    is_taken = array.flags.writeable and array.flags.aligned and array.dtype.isnative
    if not is_taken or any(s < 0 or s % array.itemsize for s in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)
