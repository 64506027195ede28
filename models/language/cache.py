"""Keys and values of the tokens so far, of every layer."""

from __future__ import annotations

import torch


class KeyValueCache:
    """Keys, as xPos has turned them, and values, in memory that grows by doubling.

    Attributes:
        length: tokens held.
        keys_read: of the last step, in each layer and for each sequence, the keys that the query
            heads read, added up over heads and branches; 0 before the first step.
        choices: per layer, of pattern "top_k" alone: the key blocks (B, H, kept) that the block of
            the last token has chosen.
        means: likewise, the mean keys (B, Hkv, i, D) of the blocks before it.

    Args:
        layers: of the model.
        max_seq_len: tokens that it may hold at most.
        reserved: tokens for which there is memory from the first on; further ones make it grow.
    """

    def __init__(self, layers: int, max_seq_len: int, reserved: int = 0):
        self.max_seq_len, self.reserved = max_seq_len, reserved
        self.length = 0
        self.keys_read = 0
        self.choices: list[torch.Tensor | None] = [None] * layers
        self.means: list[torch.Tensor | None] = [None] * layers
        self._keys: list[torch.Tensor | None] = [None] * layers
        self._values: list[torch.Tensor | None] = [None] * layers
        self._padded: torch.Tensor | None = None

    @property
    def batch(self) -> int:
        """B, sequences held; 0 before the first."""
        return 0 if self._keys[0] is None else self._keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """Tokens for which there is memory."""
        return 0 if self._keys[0] is None else self._keys[0].shape[1]

    def check_room(self, tokens: int) -> None:
        """Check that further tokens fit.

        Args:
            tokens: their number.

        Raises:
            ValueError: where they do not fit into max_seq_len.
        """
        if self.length + tokens > self.max_seq_len:
            raise ValueError(
                f"{self.length} + {tokens} tokens: expected at most max_seq_len={self.max_seq_len}"
            )

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keep the keys and values of the tokens after those held; `advance` counts them.

        Args:
            layer: its number.
            k, v: (B, n, Hkv, D).

        Raises:
            ValueError: as of `check_room`.
        """
        self.check_room(k.shape[1])
        stop = self.length + k.shape[1]
        for held, x in ((self._keys, k), (self._values, v)):
            held[layer] = self._with_room(held[layer], x, stop)
            held[layer][:, self.length : stop] = x

    def mask(self, key_padding_mask: torch.Tensor | None) -> None:
        """Remember which tokens of the prompt are padding, once, before any step.

        Args:
            key_padding_mask: (B, N) bool, True for padding, or None.
        """
        self._padded = key_padding_mask

    def advance(self, tokens: int) -> None:
        """Count tokens whose keys and values all layers have written.

        Args:
            tokens: their number.
        """
        self.length += tokens

    def of(self, layer: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What is held.

        Args:
            layer: its number.
            stop: tokens, those being written included.

        Returns:
            k, v (B, stop, Hkv, D), views, and which are padding, (B, stop) bool or None.
        """
        padded = self._padded
        if padded is not None and padded.shape[1] < stop:
            padded = self._padded = self._with_room(padded, padded, stop)
        padded = None if padded is None else padded[:, :stop]
        return self._keys[layer][:, :stop], self._values[layer][:, :stop], padded

    def _with_room(self, held: torch.Tensor | None, like: torch.Tensor, stop: int) -> torch.Tensor:
        """Memory for `stop` tokens or more, what is held copied into it."""
        if held is not None and held.shape[1] >= stop:
            return held
        room = max(stop, self.reserved if held is None else 2 * held.shape[1])
        grown = like.new_zeros(like.shape[0], min(room, self.max_seq_len), *like.shape[2:])
        if held is not None:
            grown[:, : held.shape[1]] = held
        return grown
