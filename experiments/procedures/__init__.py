"""Measuring procedures, a module each, chosen by a grid (`procedure: attention`).

A module has two functions, which run in processes of their own:

    make_reference(case, device, reference, kept)  writes to the file `reference` what the check
                                                   needs, which `kept` may have of an earlier case;
                                                   returns fields of the record that are known
                                                   before anything is timed
    replicate(case, device, reference, limits)     returns a replicate of the record, and "error";
                                                   raises `check.CheckFailed` if the output is wrong

and an entry in `PROCEDURES`, which is read without torch.

What a procedure measures is a `Case`, or a class of its own with more fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache

from experiments.case import Case
from experiments.training.case import TrainingCase
from models.language.serving import why_not
from models.registry import VARIANTS, Variant


@dataclass(frozen=True)
class Procedure:
    """How a case is measured: the module `experiments.procedures.<name>`.

    result: what it measures, in words. fields: of a replicate, never empty. times: those of
    them that are milliseconds of measuring. case_class: of its cases; of another than `Case` a
    grid names the procedure, or its variants would have two.
    """

    name: str
    can_measure: Callable[[Variant], bool]
    result: str = "timed samples"
    fields: tuple[str, ...] = ("samples_ms",)
    times: tuple[str, ...] = ("samples_ms",)
    case_class: type[Case] = Case

    @property
    def module(self) -> str:
        """The Python module, by its full name."""
        return f"{__name__}.{self.name}"

    def is_in(self, replicates: Sequence) -> bool:
        """Whether there are replicates (`schema.Replicate`), and each holds its fields."""
        held = (getattr(one, name) for one in replicates for name in self.fields)
        return bool(replicates) and all(held)


PROCEDURES = {
    procedure.name: procedure
    for procedure in (
        Procedure(
            "attention",
            lambda variant: not (variant.shard_order or variant.is_streamed or variant.replica_of),
        ),
        Procedure(
            "ranks",
            lambda variant: variant.shard_order is not None,
            fields=("samples_ms", "ranks"),
        ),
        Procedure(
            "streamed",
            lambda variant: variant.is_streamed,
            fields=("samples_ms", "source_ms"),
            times=("samples_ms", "source_ms"),
        ),
        Procedure(
            "replica",
            lambda variant: variant.replica_of is not None,
            fields=("samples_ms", "calls"),
        ),
        Procedure(
            "training",
            lambda variant: variant.shard_order is None and why_not(variant) is None,
            result="trainings",
            fields=("samples_ms", "trainings"),
            case_class=TrainingCase,
        ),
    )
}


# Those that a grid need not name, since what they measure is told from the variant.
BY_VARIANT = tuple(name for name, one in PROCEDURES.items() if one.case_class is Case)


@cache
def case_classes() -> tuple[type[Case], ...]:
    """The classes of cases, each once, that with the fewest fields first."""
    found = dict.fromkeys(one.case_class for one in PROCEDURES.values())
    return tuple(sorted(found, key=lambda one: len(columns_of(one))))


@cache
def columns_of(case_class: type[Case]) -> tuple[str, ...]:
    """Every field of a class of cases, as it is called outside."""
    return tuple(one.name.rstrip("_") for one in fields(case_class))


@cache
def columns() -> tuple[str, ...]:
    """Every field of all classes of cases."""
    return tuple(dict.fromkeys(name for one in case_classes() for name in columns_of(one)))


def class_of(keys: Iterable[str]) -> type[Case]:
    """The class of cases that knows most of these keys, of several that with the fewest fields."""
    return max(case_classes(), key=lambda one: len({*columns_of(one)} & {*keys}))


def case_from(values: Mapping) -> Case:
    """The case of whichever class has these keys, of a record; CaseError as there."""
    return class_of(values).from_mapping(values)


def of_case(case: Case) -> Procedure:
    """The one that measures a case, of those whose cases are of its class."""
    names = [name for name, one in PROCEDURES.items() if one.case_class is type(case)]
    return PROCEDURES[choose(case.variant, names)]


def choose(variant: str, names: Iterable[str] = BY_VARIANT) -> str:
    """The one procedure of `names` that can measure `variant`.

    ValueError where none or several can, and for a name that is no procedure or no variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    names = tuple(names)
    for name in names:
        if name not in PROCEDURES:
            raise ValueError(f"procedure {name!r}: expected one of {', '.join(PROCEDURES)}")
    able = [n for n, one in PROCEDURES.items() if one.can_measure(VARIANTS[variant])]
    chosen = [name for name in names if name in able]
    if not chosen:
        raise ValueError(
            f"procedure {' or '.join(names)} cannot measure {variant}: expected {' or '.join(able)}"
        )
    if len(chosen) > 1:
        raise ValueError(f"procedures {' and '.join(chosen)} can both measure {variant}: name one")
    return chosen[0]
