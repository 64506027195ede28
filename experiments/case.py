"""A case: one point of an experiment's grid, and the name that stands for it."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import get_args, get_type_hints

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
    """A case that is not valid: says which field, its value and what was expected."""


def _public(field_name: str) -> str:
    return field_name.rstrip("_")


def _stated(description: str | None = None, *, default=MISSING, **limits):
    """A field of `Case`. limits: ge, its least value, and one_of, its choices."""
    described = {} if description is None else {"description": description}
    return field(default=default, metadata={**described, **limits})


@dataclass(frozen=True)
class Case:
    """Shapes and options of one measurement.

    The fields stand here and nowhere else: keys of grids, names of files, columns of tables and
    the `case` object of a record are made of them. One case may be a point of several grids.
    Fields that do not apply to a variant are None (a dense variant has no segment lengths).
    `pass_` is written "pass" outside.
    """

    variant: str
    batch: int = _stated(ge=1)
    seq_len: int = _stated("tokens", ge=1)
    heads: int = _stated(ge=1)
    kv_heads: int = _stated(ge=1)
    head_dim: int = _stated(ge=1)
    dtype: str = _stated(one_of=DTYPES)
    is_causal: bool
    pass_: str = _stated(one_of=PASSES)
    segment_lengths: tuple[int, ...] | None = _stated("tokens, one per branch", default=None)
    dilation_rates: tuple[int, ...] | None = _stated("one per branch", default=None)
    pattern: str | None = _stated("builder of the block mask", default=None)
    sparsity: float | None = _stated("share of allowed blocks left out", default=None)
    block_size: int | None = _stated("tokens", default=None)
    world_size: int | None = _stated("ranks", default=None, ge=1)
    simulated: bool | None = _stated("virtual ranks in one process", default=None)
    seed: int = _stated(default=0, ge=0)

    def __post_init__(self):
        for attribute, name, is_optional, limits in _LIMITED:
            value = getattr(self, attribute)
            if value is not None or not is_optional:
                _check_stated(name, value, **limits)
        if self.heads % self.kv_heads:
            raise CaseError(f"kv_heads={self.kv_heads}: expected a divisor of heads={self.heads}")
        if type(self.is_causal) is not bool:
            raise CaseError(f"is_causal={self.is_causal!r}: expected true or false")
        _check_branches(self.segment_lengths, self.dilation_rates)
        _check_blocks(self.pattern, self.sparsity, self.block_size)
        if (self.world_size is None) != (self.simulated is None):
            raise CaseError("world_size and simulated: give both or neither")
        if self.simulated is not None and type(self.simulated) is not bool:
            raise CaseError(f"simulated={self.simulated!r}: expected true or false")

    @property
    def is_spread(self) -> bool:
        """Whether it runs in several processes, one per rank."""
        return self.simulated is False

    @property
    def name(self) -> str:
        """What stands for it in file names and commands: every field, so no two cases share one.

        `dilated-sdpa_b1_n8192_h8_d64_float32_forward_w1024+2048_r1+2`; what does not apply is left
        out, as are as many key heads as heads, and a seed of 0.
        """
        heads = f"h{self.heads}" + (f"+{self.kv_heads}" if self.kv_heads != self.heads else "")
        shape = (f"b{self.batch}", f"n{self.seq_len}", heads, f"d{self.head_dim}", self.dtype)
        parts = [self.variant, *shape, *(["causal"] if self.is_causal else []), self.pass_]
        if self.segment_lengths is not None:
            lists = (self.segment_lengths, self.dilation_rates)
            parts += [f"{key}{as_text(values)}" for key, values in zip("wr", lists, strict=True)]
        if self.pattern is not None:
            parts.append(f"{self.pattern}-{self.sparsity}-{self.block_size}")
        if self.world_size is not None:
            parts.append(f"p{self.world_size}{'-simulated' if self.simulated else ''}")
        return "_".join([*parts, *([f"seed{self.seed}"] if self.seed else [])])

    def params(self) -> dict[str, str]:
        """Every field as text, in order; None is "none"."""
        return {_public(f.name): as_text(getattr(self, f.name)) for f in fields(self)}

    def to_json(self) -> dict:
        """The `case` object of a record; `variant` stands beside it there."""
        values = {_public(f.name): getattr(self, f.name) for f in fields(self)}
        del values["variant"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def cells(self) -> dict:
        """The fields by `COLUMNS`, for a row of a table: a number that does not apply is NaN."""
        values = {_public(f.name): getattr(self, f.name) for f in fields(self)}
        for name in _OPTIONAL_NUMBERS:
            values[name] = math.nan if values[name] is None else float(values[name])
        return values

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
        required = [key for key, f in known.items() if f.default is MISSING]
        missing = [key for key in required if key not in values]
        if missing:
            raise CaseError(f"missing key {missing[0]!r}")
        return cls(
            **{known[k].name: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        )


# Every field as it is called outside.
COLUMNS = tuple(_public(f.name) for f in fields(Case))
# Of fields with limits: attribute, name outside, whether it may be None, and the limits.
_LIMITED = tuple(
    (f.name, _public(f.name), f.default is None, limits)
    for f in fields(Case)
    if (limits := {key: f.metadata[key] for key in ("ge", "one_of") if key in f.metadata})
)
_OPTIONAL_NUMBERS = [
    name for name, hint in get_type_hints(Case).items() if {int, float} & {*get_args(hint)}
]


def as_text(value) -> str:
    """A value of a field as a file name has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(value)


def _check_stated(name: str, value, *, ge=None, one_of=None) -> None:
    if ge is not None and (type(value) is not int or value < ge):
        raise CaseError(f"{name}={value!r}: expected an integer >= {ge}")
    if one_of is not None and value not in one_of:
        raise CaseError(f"{name}={value!r}: expected one of {', '.join(one_of)}")


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
        _check_stated("segment_lengths", value, ge=1)
    for value in dilation_rates:
        _check_stated("dilation_rates", value, ge=1)


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
    _check_stated("block_size", block_size, ge=1)
