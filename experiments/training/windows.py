"""Windows of a corpus as batches: every byte asked, shuffled by seed, streamed."""

from __future__ import annotations

import numpy as np
import torch

from experiments.training.batch import NO_DISTANCE, Batch, check_request, generator
from experiments.training.corpus import VOCAB_SIZE, Corpus
from models.errors import as_integer


class Windows:
    """A source (see `batch.Source`) of next-byte prediction over windows of N bytes.

    Training runs through the text once per epoch: windows that do not overlap, in an order
    drawn for the epoch, from an offset below N drawn for the epoch, so that windows differ
    between epochs. The fewer than `batch` windows left over at the end of an epoch are
    left out. Validation takes the same windows in order, always, whatever the seed.
    """

    def __init__(self, corpus: Corpus, seq_len: int, batch: int, seed: int = 0) -> None:
        """Windows of `seq_len` tokens, `batch` of them at once.

        Raises:
            ValueError: where an argument is out of range, or a part of the corpus holds no
                whole batch.
        """
        self.corpus = corpus
        self.seq_len = as_integer("seq_len", seq_len)
        self.batch_size = as_integer("batch", batch)
        self.seed = as_integer("seed", seed, least=0)
        self.name, self.vocab_size = corpus.name, VOCAB_SIZE
        # A window has N + 1 bytes. In training N more are needed, for any offset below N.
        self._train_windows = (len(corpus.train) - self.seq_len) // self.seq_len
        validation_windows = (len(corpus.validation) - 1) // self.seq_len
        self.batches_per_epoch = self._whole_batches("train", self._train_windows)
        self.validation_batches = self._whole_batches("validation", validation_windows)
        self._drawn: tuple[int, int, np.ndarray] | None = None

    @property
    def description(self) -> dict:
        """What the batches follow from, as JSON, the corpus's content hash and licences in it."""
        return self.corpus.description | {
            "seq_len": self.seq_len,
            "batch": self.batch_size,
            "seed": self.seed,
        }

    def batch(self, split: str, index: int, *, rows: slice | None = None) -> Batch:
        """Inputs, the bytes after them as targets; no distances. See `batch.Source`.

        Raises:
            ValueError: also where `index` is not below `validation_batches` in validation.
        """
        index, rows = check_request(split, index, rows)
        if split == "validation" and index >= self.validation_batches:
            raise ValueError(
                f"index={index}: expected one below {self.validation_batches}, "
                "the batches of validation"
            )
        starts = self._starts(split, index)[rows, None]
        text = getattr(self.corpus, split)
        windows = text[starts + np.arange(self.seq_len + 1)].astype(np.int64)
        inputs, targets = torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:])
        return Batch(inputs, targets.contiguous(), torch.full_like(inputs, NO_DISTANCE))

    def _starts(self, split: str, index: int) -> np.ndarray:
        """Where the windows of a batch begin in the text, (B,) int64."""
        if split == "validation":
            first = index * self.batch_size
            return np.arange(first, first + self.batch_size) * self.seq_len
        epoch, place = divmod(index, self.batches_per_epoch)
        offset, order = self._epoch(epoch)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return offset + chosen * self.seq_len

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """An epoch's offset and order of windows; the last one asked for is kept."""
        if self._drawn is None or self._drawn[0] != epoch:
            rng = generator(self.seed, "train", epoch)
            offset = int(rng.integers(self.seq_len))
            self._drawn = (epoch, offset, rng.permutation(self._train_windows))
        return self._drawn[1:]

    def _whole_batches(self, split: str, windows: int) -> int:
        if windows < self.batch_size:
            held = len(getattr(self.corpus, split))
            raise ValueError(
                f"seq_len={self.seq_len}, batch={self.batch_size}: expected a batch that "
                f"fits into the {held:,} bytes of {split}, which hold {max(0, windows)} windows"
            )
        return windows // self.batch_size
