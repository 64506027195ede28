"""What a record says of a replica, as columns of the frame (`analysis.records`)."""

from __future__ import annotations

import math
from statistics import median

from experiments.schema import Calls, Deviation, Record

DEVIATIONS = tuple(name for name in Deviation.model_fields if name != "variant")
CALLS = tuple(Calls.model_fields)


def columns(record: Record) -> dict:
    """Columns of `deviation` and of `calls`; NaN, and None as `deviation_variant`, without any.

    reference: what the output was checked against, of any record that was checked.
    deviation_*: as in the record; NaN too where it was not finite. calls_*: the median over
    replicates, ms and bytes.
    """
    ok = record.status == "ok" and record.deviation is not None
    deviation = record.deviation.model_dump() if ok else {}
    calls = [r.calls.model_dump() for r in record.replicates if r.calls is not None] if ok else []
    return {
        "reference": record.error.reference if record.error is not None else None,
        "deviation_variant": deviation.get("variant"),
        **{f"deviation_{name}": _number(deviation.get(name)) for name in DEVIATIONS},
        **{f"calls_{name}": _median([one[name] for one in calls]) for name in CALLS},
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _median(values: list) -> float:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else math.nan
