"""A case: one point of an experiment's grid, and the file name that stands for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

DTYPES = ("float64", "float32", "float16", "bfloat16")
PASSES = ("forward", "forward_backward")
# The builders of block masks in `models.patterns`.
PATTERNS = ("local_window", "dilated", "global_local", "strided", "random", "top_k")
# What a case says of who attends to whom, by what its variant takes.
PATTERN_FIELDS = {
    "branches": ("segment_lengths", "dilation_rates"),
    "blocks": ("pattern", "sparsity", "block_size"),
}
# And of the ranks that it is spread over, where its variant is.
RANK_FIELDS = ("world_size", "simulated")


class CaseError(ValueError):
    """A case that cannot be: says which field, its value and what was expected."""


@dataclass(frozen=True)
class Case:
    """Shapes and options of one measurement; lengths in tokens.

    Fields that do not apply to a variant are None (a dense variant has no
    segment lengths). pattern, sparsity, block_size: the builder of the block mask,
    one of PATTERNS, the share of allowed blocks that it leaves out, and the side of
    a block in tokens. world_size: ranks; simulated: whether they are virtual ones in one
    process. `pass_` is written "pass" in grids, records and names.
    """

    variant: str
    batch: int
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    is_causal: bool
    pass_: str
    segment_lengths: tuple[int, ...] | None = None
    dilation_rates: tuple[int, ...] | None = None
    pattern: str | None = None
    sparsity: float | None = None
    block_size: int | None = None
    world_size: int | None = None
    simulated: bool | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("batch", "seq_len", "heads", "kv_heads", "head_dim"):
            _check_positive(name, getattr(self, name))
        if type(self.seed) is not int or self.seed < 0:
            raise CaseError(f"seed={self.seed!r}: expected an integer >= 0")
        if self.heads % self.kv_heads:
            raise CaseError(f"kv_heads={self.kv_heads}: expected a divisor of heads={self.heads}")
        if self.dtype not in DTYPES:
            raise CaseError(f"dtype={self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.pass_ not in PASSES:
            raise CaseError(f"pass={self.pass_!r}: expected one of {', '.join(PASSES)}")
        if type(self.is_causal) is not bool:
            raise CaseError(f"is_causal={self.is_causal!r}: expected true or false")
        _check_branches(self.segment_lengths, self.dilation_rates)
        _check_blocks(self.pattern, self.sparsity, self.block_size)
        if (self.world_size is None) != (self.simulated is None):
            raise CaseError("world_size and simulated: give both or neither")
        if self.world_size is not None:
            _check_positive("world_size", self.world_size)
            if type(self.simulated) is not bool:
                raise CaseError(f"simulated={self.simulated!r}: expected true or false")

    @property
    def is_spread(self) -> bool:
        """Whether it runs on several processes, one a rank."""
        return self.simulated is False

    def params(self) -> dict[str, str]:
        """Every field as text, in order; None is "none"."""
        return {_public(f.name): _text(getattr(self, f.name)) for f in fields(self)}

    def to_json(self) -> dict:
        """The `case` object of a record; `variant` stands beside it there."""
        values = {_public(f.name): getattr(self, f.name) for f in fields(self)}
        del values["variant"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_mapping(cls, values: dict) -> Case:
        """Build a case from grid or record keys; unknown or missing keys raise CaseError."""
        known = {_public(f.name): f for f in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise CaseError(f"unknown key {unknown[0]!r}: expected one of {', '.join(known)}")
        values = dict(values)
        if "heads" in values:
            values.setdefault("kv_heads", values["heads"])
        required = [k for k, f in known.items() if f.default is not None and f.name != "seed"]
        missing = [key for key in required if key not in values]
        if missing:
            raise CaseError(f"missing key {missing[0]!r}")
        return cls(
            **{known[k].name: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        )


def columns(cases: Iterable[Case]) -> tuple[str, ...]:
    """The fields that these cases need to be told apart: all that are not None in every one.

    Taken over a whole experiment, so that a field which a later experiment adds
    changes no file name here.
    """
    used = {f.name for case in cases for f in fields(case) if getattr(case, f.name) is not None}
    return tuple(_public(f.name) for f in fields(Case) if f.name in used)


def _public(field_name: str) -> str:
    return field_name.rstrip("_")


def _text(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(value)


def _check_positive(name: str, value) -> None:
    if type(value) is not int or value < 1:
        raise CaseError(f"{name}={value!r}: expected an integer >= 1")


def _check_branches(segment_lengths, dilation_rates) -> None:
    if (segment_lengths is None) != (dilation_rates is None):
        raise CaseError("segment_lengths and dilation_rates: give both or neither")
    if segment_lengths is None:
        return
    for name, values in (("segment_lengths", segment_lengths), ("dilation_rates", dilation_rates)):
        if not isinstance(values, tuple):
            raise CaseError(f"{name}={values!r}: expected a list of integers")
    if len(segment_lengths) != len(dilation_rates) or not segment_lengths:
        raise CaseError(
            f"dilation_rates={list(dilation_rates)!r}: expected as many as "
            f"segment_lengths={list(segment_lengths)!r}, and at least one"
        )
    for value in segment_lengths:
        _check_positive("segment_lengths", value)
    for value in dilation_rates:
        _check_positive("dilation_rates", value)


def _check_blocks(pattern, sparsity, block_size) -> None:
    given = {"pattern": pattern, "sparsity": sparsity, "block_size": block_size}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise CaseError(f"missing key {missing[0]!r}: a block mask needs {', '.join(given)}")
    if pattern not in PATTERNS:
        raise CaseError(f"pattern={pattern!r}: expected one of {', '.join(PATTERNS)}")
    if type(sparsity) is not float or not 0 <= sparsity < 1:
        raise CaseError(f"sparsity={sparsity!r}: expected a number from 0.0 to below 1.0")
    _check_positive("block_size", block_size)
