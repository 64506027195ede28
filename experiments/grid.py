"""Grid files: `experiments/<name>.yaml` -> the cases of a tier, most valuable first."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from experiments.case import PATTERN_FIELDS, RANK_FIELDS, Case, as_text
from experiments.plain_yaml import PlainYamlError, loads
from experiments.procedures import BY_VARIANT, PROCEDURES, choose, columns
from models.registry import VARIANTS

GRIDS = Path(__file__).parent
TIERS = ("smoke", "laptop", "gpu")
# What is asked for: on a CPU of `laptop`, on a GPU of `gpu`, the quick cases or all.
SIZES = ("smoke", "quick", "full")
# Grid files are named in commands, paths and rules.
_NAME = re.compile(r"[a-z0-9_]+")
# Of a block: more are a slip, and would take long to say so.
_MOST_CASES = 10_000
# Of the name of a case, which a file is named after.
_LONGEST = 240
_COUNTS = ("replicates", "min_samples", "max_samples")
# These are lists in themselves: in a block they are one value, not an axis.
_LISTS = ("segment_lengths", "dilation_rates")


class GridError(ValueError):
    """A grid that cannot be used: names the file, the tier and the key."""


@dataclass(frozen=True)
class Limits:
    """How long and how often a case of a tier is measured.

    replicates: fresh processes per round. min_samples, max_samples: timed repeats in each.
    sample_seconds: go on sampling until then. timeout_s: wall time of the whole
    case. memory_gib: address space beyond the start, None for what the machine has.
    """

    replicates: int = 1
    min_samples: int = 3
    max_samples: int = 50
    sample_seconds: float = 0.3
    timeout_s: float = 120.0
    memory_gib: float | None = None


@dataclass(frozen=True)
class Task:
    """A case of a tier, once for all the experiments that it is a point of.

    limits: the largest of each that one of them asks for. is_quick: whether one of them needs it
    for its findings.
    """

    case: Case
    experiments: tuple[str, ...]
    procedure: str
    limits: Limits
    is_quick: bool = False

    @property
    def name(self) -> str:
        """That of the case."""
        return self.case.name


@dataclass(frozen=True)
class Tier:
    """quick: those of its cases that the findings need."""

    name: str
    limits: Limits
    cases: tuple[Case, ...]
    quick: frozenset[Case]


@dataclass(frozen=True)
class Grid:
    """One experiment: a question and the tiers that answer it at three sizes.

    procedures: names of how its cases are measured, each variant by the one that can; where the
    file names none, all that are told from the variant.
    """

    name: str
    title: str
    question: str
    procedures: tuple[str, ...]
    tiers: dict[str, Tier]

    def procedure(self, variant: str) -> str:
        """Which of its procedures measures `variant`; GridError where none or several can."""
        try:
            return choose(variant, self.procedures)
        except ValueError as error:
            raise GridError(f"{self.name}.yaml: {error}") from error

    def check_tier(self, tier: str) -> Tier:
        """The tier of that name; GridError if there is none."""
        if tier not in self.tiers:
            raise GridError(f"tier {tier!r}: expected one of {', '.join(self.tiers)}")
        return self.tiers[tier]


def names() -> list[str]:
    """Every experiment, by the name of its grid file; GridError of one that cannot be a name."""
    return _names(GRIDS)


def _names(folder: Path) -> list[str]:
    found = sorted(path.stem for path in folder.glob("*.yaml"))
    for name in found:
        if not _NAME.fullmatch(name):
            where = f"{folder.name}/{name}.yaml"
            raise GridError(f"{where!r}: expected a name of a-z, 0-9 and _")
    return found


def resolve(size: str, device_kind: str) -> tuple[str, bool]:
    """The tier that a size means on a device ("cpu" or "cuda"), and whether only its quick cases.

    GridError unless size is one of SIZES or of TIERS.
    """
    if size not in (*SIZES, *TIERS):
        known = ", ".join(dict.fromkeys((*SIZES, *TIERS)))
        raise GridError(f"tier {size!r}: expected one of {known}")
    tier = {"quick": None, "full": None}.get(size, size)
    return tier or ("laptop" if device_kind == "cpu" else "gpu"), size == "quick"


def tasks(
    tier: str, experiments: Iterable[str] | None = None, *, quick: bool = False
) -> list[Task]:
    """The cases of a tier, each once: of all experiments, or of some; quick: only such.

    Most valuable first: the first case of every experiment, then the second. How a case is measured
    and how long is the same whichever experiments are asked for. GridError where grids disagree
    on a procedure.
    """
    known = {name: load(name) for name in names()}
    found: dict[Case, Task] = {}
    for name, grid in known.items():
        of_tier = grid.check_tier(tier)
        for case in of_tier.cases:
            how = grid.procedure(case.variant), of_tier.limits, case in of_tier.quick
            task = Task(case, (name,), *how)
            found[case] = _both(found[case], task) if case in found else task
    wanted = known.values() if experiments is None else map(load, experiments)
    turns = itertools.zip_longest(*(grid.tiers[tier].cases for grid in wanted))
    asked = dict.fromkeys(case for turn in turns for case in turn if case is not None)
    return [found[case] for case in asked if found[case].is_quick or not quick]


def _both(one: Task, other: Task) -> Task:
    if one.procedure != other.procedure:
        asked = " and ".join(f"{t.experiments[0]} by {t.procedure}" for t in (one, other))
        raise GridError(f"{one.name}: measured in {asked}: expected one procedure")
    pairs = zip(astuple(one.limits), astuple(other.limits), strict=True)
    # No limit of memory is the largest.
    limits = Limits(*(None if None in pair else max(pair) for pair in pairs))
    return replace(
        one,
        experiments=one.experiments + other.experiments,
        limits=limits,
        is_quick=one.is_quick or other.is_quick,
    )


@lru_cache(maxsize=1)
def _experiments_of() -> dict[Case, tuple[str, ...]]:
    found: dict[Case, tuple[str, ...]] = {}
    for name in names():
        for case in {case: None for tier in load(name).tiers.values() for case in tier.cases}:
            found[case] = (*found.get(case, ()), name)
    return found


def cases() -> Iterable[Case]:
    """Every case of every grid."""
    return _experiments_of().keys()


def experiments_of(case: Case) -> tuple[str, ...]:
    """The experiments that have the case in some tier, by name; () for none."""
    return _experiments_of().get(case, ())


def load(name: str, folder: Path = GRIDS) -> Grid:
    """The grid of experiment `name`; GridError names the file and what is wrong in it."""
    if not _NAME.fullmatch(name):
        raise GridError(f"experiment {name!r}: no such name; there are {', '.join(_names(folder))}")
    path = folder / f"{name}.yaml"
    where = f"{folder.name}/{path.name}"
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        known = ", ".join(_names(folder))
        raise GridError(f"experiment {name!r}: no {path.name}; there are {known}") from None
    except OSError as error:
        raise GridError(f"{where}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise GridError(f"{where}: line {line}: not UTF-8") from None
    return _parsed(name, where, text)


@lru_cache(maxsize=64)  # The analysis asks for the same grids hundreds of times.
def _parsed(name: str, where: str, text: str) -> Grid:
    try:
        data = loads(text)
    except PlainYamlError as error:
        raise GridError(f"{where}: {error}") from error
    _check_keys(where, data, required=("title", "question", "tiers"), optional=("procedure",))
    for key in ("title", "question"):
        if not isinstance(data[key], str):
            raise GridError(f"{where}: {key}: expected text, got {data[key]!r}")
    procedures = _as_list(data.get("procedure", [*BY_VARIANT]))
    for one in procedures:
        if not isinstance(one, str) or one not in PROCEDURES:
            raise GridError(f"{where}: procedure {one!r}: expected one of {', '.join(PROCEDURES)}")
    _check_keys(f"{where}: tiers", data["tiers"], required=TIERS)
    tiers = {
        tier: _tier(f"{where}: {tier}", tier, data["tiers"][tier], tuple(procedures))
        for tier in TIERS
    }
    grid = Grid(
        name,
        data["title"],
        data["question"],
        tuple(procedures),
        tiers,
    )
    for variant in {case.variant: None for tier in tiers.values() for case in tier.cases}:
        grid.procedure(variant)
    return grid


def _tier(where: str, name: str, data, procedures: tuple[str, ...]) -> Tier:
    _check_keys(where, data, required=("cases",), optional=("limits",))
    limits = data.get("limits") or {}
    _check_keys(f"{where}: limits", limits, optional=tuple(f.name for f in fields(Limits)))
    for key, value in limits.items():
        kinds = (int,) if key in _COUNTS else (int, float)
        if type(value) not in kinds or not 0 < value < float("inf"):
            what = "an integer >= 1" if key in _COUNTS else "a positive number"
            raise GridError(f"{where}: limits: {key}={value!r}: expected {what}")
    if not isinstance(data["cases"], list):
        raise GridError(f"{where}: cases: expected a list of blocks")
    cases: dict[Case, None] = {}
    quick: set[Case] = set()
    for number, block in enumerate(data["cases"], start=1):
        at = f"{where}: cases, block {number}"
        found = expand(at, block, procedures)
        cases.update(dict.fromkeys(found))
        quick |= _quick(at, block.get("quick", False), found)
    return Tier(name, Limits(**limits), tuple(cases), frozenset(quick))


def _quick(where: str, asked, cases: list[Case]) -> set[Case]:
    """Those of a block's cases that its key `quick` names: all, or by values of some fields.

    A field that does not apply to a case leaves it in.
    """
    if type(asked) is bool:
        return {*cases} if asked else set()
    if not isinstance(asked, dict) or not set(asked) <= {*columns()}:
        raise GridError(f"{where}: quick: expected true, false or fields of cases, got {asked!r}")
    values = {key: [*map(as_text, _as_list(value))] for key, value in asked.items()}
    given = [case.params() for case in cases]
    fits = [all(one.get(key, "none") in (*values[key], "none") for key in values) for one in given]
    chosen = {*itertools.compress(cases, fits)}
    for key, wanted in values.items():
        for value in wanted:
            if all(case.params().get(key) != value for case in chosen):
                raise GridError(f"{where}: quick: no case with {key}={value}")
    return chosen


def expand(where: str, block: dict, procedures: tuple[str, ...] = BY_VARIANT) -> list[Case]:
    """All combinations of a block's lists; `shapes` lists mappings whose keys go together.

    procedures: those of the grid, one of which says of what class a variant's case is.
    """
    if not isinstance(block, dict) or not isinstance(block.get("shapes"), list):
        raise GridError(f"{where}: expected a mapping with a list of `shapes`")
    block = {key: value for key, value in block.items() if key != "quick"}
    shapes = block.pop("shapes")
    variants = _as_list(block.pop("variant", None))
    axes = {k: [v] if k in _LISTS else _as_list(v) for k, v in block.items()}
    for key, values in {"variant": variants, "shapes": shapes, **axes}.items():
        if not values:
            raise GridError(f"{where}: {key}: an empty list leaves no case")
    count = math.prod(map(len, (variants, shapes, *axes.values())))
    if count > _MOST_CASES:
        raise GridError(f"{where}: {count} cases: expected at most {_MOST_CASES} of a block")
    cases = []
    for shape, *values in itertools.product(shapes, *axes.values()):
        if not isinstance(shape, dict):
            raise GridError(f"{where}: shapes: expected mappings, got {shape!r}")
        twice = set(shape) & set(axes)
        if twice:
            raise GridError(f"{where}: {min(twice)!r} stands in the block and in its shapes")
        point = dict(zip(axes, values, strict=True)) | shape
        for variant in variants:
            cases.append(_case(where, variant, point, procedures))
    return cases


def _case(where: str, variant, point: dict, procedures: tuple[str, ...]) -> Case:
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise GridError(f"{where}: variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    entry = VARIANTS[variant]
    # A block of several systems: dense attention is then one case per shape.
    point = applicable(variant, point)
    for keys, is_needed in _needs(variant).items():
        if is_needed and any(point.get(key) is None for key in keys):
            raise GridError(f"{where}: {variant} needs {', '.join(keys[:-1])} and {keys[-1]}")
    if point.get("simulated") and not entry.can_be_simulated:
        raise GridError(f"{where}: {variant} cannot be simulated: expected simulated: false")
    try:
        case_class = PROCEDURES[choose(variant, procedures)].case_class
        case = case_class.from_mapping({"variant": variant, **point})
    except ValueError as error:
        raise GridError(f"{where}: {error}") from error
    if len(case.name) > _LONGEST:
        raise GridError(f"{where}: {case.name[:60]}...: a longer name than a file can have")
    return case


def applicable(variant: str, fields: Mapping) -> dict:
    """Those fields that apply to a variant: of blocks, branches and ranks what it takes."""
    left_out = {key for keys, is_needed in _needs(variant).items() if not is_needed for key in keys}
    if VARIANTS[variant].pattern_class != "DilatedBranches":
        left_out.add("head_offset")
    return {key: value for key, value in fields.items() if key not in left_out}


def _needs(variant: str) -> dict[tuple[str, ...], bool]:
    entry = VARIANTS[variant]
    needs = {keys: kind == entry.takes for kind, keys in PATTERN_FIELDS.items()}
    return {**needs, RANK_FIELDS: entry.shard_order is not None}


def _as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def _check_keys(where: str, data, required=(), optional=()) -> None:
    if not isinstance(data, dict):
        raise GridError(f"{where}: expected a mapping, got {data!r}")
    for key in data:
        if key not in (*required, *optional):
            raise GridError(
                f"{where}: unknown key {key!r}: expected one of {', '.join((*required, *optional))}"
            )
    for key in required:
        if key not in data:
            raise GridError(f"{where}: missing key {key!r}")
