"""Stand-ins for h5py datasets and zarr arrays, and a source that notes what is read of it."""

from types import SimpleNamespace

import numpy as np


class Dataset:
    """As h5py and zarr have them: slices of step 1 are read and written, NumPy gets a copy.

    mode: of the file it is in, "r" or "r+". read_only: as of a zarr array. `slices` are those
    that were read or written, by the tokens that they hold.
    """

    def __init__(self, array: np.ndarray, mode="r+", read_only=False):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype
        self.file, self.read_only, self.slices = SimpleNamespace(mode=mode), read_only, []

    def _noted(self, place):
        assert all(isinstance(one, slice) and one.step in (None, 1) for one in place)
        self.slices.append((place[-1].start, place[-1].stop))
        return place

    def __getitem__(self, place):
        return self._array[self._noted(place)].copy()

    def __setitem__(self, place, values):
        assert isinstance(values, np.ndarray) and self.file.mode == "r+" and not self.read_only
        self._array[self._noted(place)] = values

    def __array__(self, dtype=None, copy=None):
        return self._array.astype(dtype or self.dtype)


class Recorder:
    """A source that notes what is read of another; `changes` are attributes that it has instead."""

    def __init__(self, source, **changes):
        self.source, self.reads = source, []
        self.__dict__.update(changes)

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, start, stop):
        self.reads.append((start, stop))
        return self.source.read(start, stop)
