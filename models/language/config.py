"""What a LongNet model is: its configuration, checked."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Real

from models.errors import as_integer, as_number, check_choice
from models.language.schedule import schedule
from models.language.serving import serving_variant
from models.patterns.branches import DilatedBranches, HeadPartition
from models.registry import Variant

# Patterns of blocks by builder, and "top_k", which each layer chooses by its queries and keys.
BLOCK_PATTERNS = ("local_window", "dilated", "global_local", "strided", "random", "top_k")
_OF_BLOCKS = ("pattern", "sparsity", "block_size")
# xPos' scales are within 0.2857 ** +-64 then, 1e35, to be multiplied with queries and keys.
_LONGEST_IN_BASES = 128


@dataclass(frozen=True)
class LongNetConfig:
    """The configuration of `models.LongNetLM` and `models.LongNetEncoder`.

    What is None is filled in, so that `to_json` writes what the model is.

    Args:
        vocab_size: V.
        max_seq_len: tokens of the longest sequence.
        layers: number of layers.
        embed_dim: E, a multiple of heads.
        heads: H; E / H is even.
        kv_heads: Hkv, a divisor of H (grouped queries); None for H.
        ffn_dim: width of the feed-forward layers; None for 4 E.
        attention: variant of `models.registry.VARIANTS` that each layer attends by.
        segment_lengths, dilation_rates: of its branches, only where it has such; None for
            `models.language.schedule.schedule(max_seq_len)`.
        head_offset: of its branches, as of `models.dilated_attention`.
        pattern: where it takes block masks, one of BLOCK_PATTERNS. Masks are built once, for
            max_seq_len, and a shorter sequence has their upper left part, so that what follows a
            token changes nothing; "top_k" is `models.language.chosen_blocks`.
        sparsity: of the block mask, at least 0 and below 1.
        block_size: of the block mask, tokens.
        pattern_seed: of the pattern "random" alone; None for 0.
        tied_embeddings: whether tokens are scored by the weights that embed them.
        checkpoint_activations: whether backward passes compute each layer again instead of
            keeping its activations.
        xpos_scale_base: tokens over which scores decay, in a decoder; None for the larger of
            512, as in xPos' paper, and max_seq_len / 8, so that scales stay within 0.2857 ** +-4,
            which float16 holds. At least max_seq_len / 128, for float32 and bfloat16.

    Raises:
        ValueError: on bad arguments.
    """

    vocab_size: int
    max_seq_len: int
    layers: int
    embed_dim: int
    heads: int
    kv_heads: int | None = None
    ffn_dim: int | None = None
    attention: str = "dilated-sdpa"
    segment_lengths: tuple[int, ...] | None = None
    dilation_rates: tuple[int, ...] | None = None
    head_offset: str = "modulo"
    pattern: str | None = None
    sparsity: float | None = None
    block_size: int | None = None
    pattern_seed: int | None = None
    tied_embeddings: bool = True
    checkpoint_activations: bool = False
    xpos_scale_base: float | None = None

    def __post_init__(self):
        for name in ("vocab_size", "max_seq_len", "layers", "embed_dim", "heads"):
            self._set(name, as_integer(name, getattr(self, name)))
        self._set("kv_heads", as_integer("kv_heads", _or(self.kv_heads, self.heads)))
        self._set("ffn_dim", as_integer("ffn_dim", _or(self.ffn_dim, 4 * self.embed_dim)))
        for name in ("tied_embeddings", "checkpoint_activations"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected True or False")
        if self.embed_dim % self.heads or self.head_dim % 2:
            raise ValueError(
                f"embed_dim={self.embed_dim}: expected an even multiple of heads={self.heads}, "
                "as xPos rotates pairs of coordinates of a head"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: expected a divisor of heads={self.heads}")
        scale_base = _or(self.xpos_scale_base, max(512, self.max_seq_len / 8))
        expected = "a positive number of tokens or None"
        self._set("xpos_scale_base", as_number("xpos_scale_base", scale_base, 1e12, expected))
        if self.xpos_scale_base * _LONGEST_IN_BASES < self.max_seq_len:
            raise ValueError(
                f"xpos_scale_base={self.xpos_scale_base}: expected at least max_seq_len / "
                f"{_LONGEST_IN_BASES} = {self.max_seq_len / _LONGEST_IN_BASES}, or scales of "
                "positions overflow float32"
            )
        self._check_branches(self.variant)
        self._check_blocks(self.variant)

    @property
    def variant(self) -> Variant:
        """The registry's entry of `attention`."""
        return serving_variant(self.attention)

    @property
    def head_dim(self) -> int:
        """D."""
        return self.embed_dim // self.heads

    @property
    def branches(self) -> DilatedBranches | HeadPartition:
        """The pattern, of a variant that takes branches."""
        lists = (self.segment_lengths, self.dilation_rates)
        if self.variant.pattern_class == "HeadPartition":
            return HeadPartition(*lists)
        return DilatedBranches(*lists, self.head_offset)

    def to_json(self) -> str:
        """The configuration as JSON, every field by its name."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LongNetConfig:
        """The configuration that `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The configuration.

        Raises:
            ValueError: where it is no JSON object of these fields, or one is missing or bad.
        """
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"configuration={type(found).__name__}: expected a JSON object")
        for name in found:
            check_choice("field", name, [field.name for field in fields(cls)])
        for field in fields(cls):
            if field.default is MISSING and field.name not in found:
                raise ValueError(f"{field.name} is missing: expected an integer >= 1")
        return cls(**found)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_branches(self, variant: Variant) -> None:
        lists = (self.segment_lengths, self.dilation_rates)
        if variant.takes != "branches":
            self._refuse(("segment_lengths", "dilation_rates"), None, "that takes no branches")
            self._refuse(("head_offset",), "modulo", "that takes no branches")
            return
        if variant.pattern_class == "HeadPartition":
            self._refuse(("head_offset",), "modulo", "whose heads are in one branch each")
        if lists == (None, None):
            lists = schedule(self.max_seq_len)
        for name, value in zip(("segment_lengths", "dilation_rates"), lists, strict=True):
            if value is None:
                raise ValueError(f"{name}=None: expected both lists of the branches, or neither")
            self._set(name, value)
        pattern = self.branches
        self._set("segment_lengths", pattern.segment_lengths)
        self._set("dilation_rates", pattern.dilation_rates)

    def _check_blocks(self, variant: Variant) -> None:
        if variant.takes != "blocks":
            names = (*_OF_BLOCKS, "pattern_seed")
            self._refuse(names, None, "that takes no block mask")
            return
        check_choice("pattern", self.pattern, BLOCK_PATTERNS)
        if self.pattern == "top_k" and variant.shard_order is not None:
            raise ValueError(
                "pattern='top_k': expected another over ranks, none of which holds the queries "
                "and keys that the blocks are chosen by"
            )
        if self.attention == "ring-block-sparse-dilated" and self.pattern != "dilated":
            raise ValueError(
                f"pattern={self.pattern!r}: expected 'dilated' with attention={self.attention!r}"
            )
        self._set("block_size", as_integer("block_size", self.block_size))
        sparsity = self.sparsity
        is_number = isinstance(sparsity, Real) and not isinstance(sparsity, bool)
        if not is_number or not 0 <= sparsity < 1:
            raise ValueError(f"sparsity={sparsity!r}: expected a number, at least 0 and below 1")
        self._set("sparsity", float(sparsity))
        if self.pattern == "random":
            seed = as_integer("pattern_seed", _or(self.pattern_seed, 0), least=0)
            self._set("pattern_seed", seed)
        else:
            self._refuse(("pattern_seed",), None, "whose pattern is not 'random'")

    def _refuse(self, names: tuple[str, ...], only: object, why: str) -> None:
        for name in names:
            if getattr(self, name) != only:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected {only!r} with "
                    f"attention={self.attention!r}, {why}"
                )


def _or(value: object, default: object) -> object:
    return default if value is None else value
