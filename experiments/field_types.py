"""The types of a record's fields: what one of them may hold, whoever wrote it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
# A day of milliseconds, and more bytes than any machine has.
MOST_MS, MOST_BYTES = 1e8, 2**52


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters alone")
    return text


def _with_zone(text: object) -> object:
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        raise ValueError("expected a date and a time with its zone, as 2026-01-31T12:00:00+00:00")
    return text


Text = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_printable)]
# Names that a device, a package or a backend gives itself: nothing in them is markup.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 ()@.,+/:_-]{1,100}$")]
Milliseconds = Annotated[float, Field(gt=0, le=MOST_MS)]
Span = Annotated[float, Field(ge=0, le=MOST_MS)]
Bytes = Annotated[int, Field(ge=0, le=MOST_BYTES)]
Count = Annotated[int, Field(ge=1, le=2**53)]
# Bits per token, and a share of tokens.
Bits = Annotated[float, Field(ge=0, le=1e4)]
Share = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0)]
Hex8 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]
Hex16 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Time = Annotated[datetime, Field(strict=False), BeforeValidator(_with_zone)]
# As the driver writes them; a MIG instance of older drivers is named after its card.
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
CardUuid = Annotated[str, StringConstraints(pattern=f"^GPU-{_UUID}$")]
InstanceUuid = Annotated[
    str, StringConstraints(pattern=rf"^MIG-({_UUID}|GPU-{_UUID}/\d{{1,3}}/\d{{1,3}})$")
]
BusId = Annotated[str, StringConstraints(pattern=r"^[0-9A-F]{4,8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-7]$")]
# Above those of any card.
Megahertz = Annotated[int, Field(ge=0, le=20_000)]
Watts = Annotated[float, Field(gt=0, le=5_000)]
