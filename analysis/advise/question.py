"""What is asked, the rows of the frame that it is about, and the refusal where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from analysis.records import frame as records
from analysis.rendering.text import span
from analysis.selection import views
from analysis.standard import in_words
from experiments.case import DTYPES, PASSES

# Records of these time what the published code computed, which nobody should be advised to run.
NOT_SYSTEMS = ("as_published",)
SETTING = ("pass", "heads", "head_dim", "dtype", "is_causal", "batch")
# Of equally well measured types and kinds of attention, the one a reader most likely means.
PREFERRED = ("float16", "bfloat16", "float32", "float64")
NEAREST = 3
BY = ("time", "memory")
# Part of a case in words -> the column that a question may leave open.
_LEFT_OPEN = {"type": "dtype", "masking": "is_causal"}


class Refused(ValueError):
    """There is no answer without extrapolating; names what was asked and what was measured."""


@dataclass(frozen=True)
class Question:
    """A setting to be advised on: lengths in tokens, memory in bytes.

    device: part of a device's name or machine's id, or None for the reporting machine.
    dtype, is_causal: None takes those that most systems were measured with.
    memory_bytes: what a pass and its inputs may take; None is the memory of the device.
    by: "time" or "memory": what the ranking is by.
    """

    seq_len: int
    heads: int
    head_dim: int
    pass_: str = "forward"
    batch: int = 1
    dtype: str | None = None
    is_causal: bool | None = None
    device: str | None = None
    memory_bytes: float | None = None
    by: str = "time"

    def __post_init__(self):
        for name in ("seq_len", "heads", "head_dim", "batch"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)!r}, expected an integer >= 1")
        if self.memory_bytes is not None and not 0 < self.memory_bytes < math.inf:
            raise ValueError(f"memory_bytes: is {self.memory_bytes!r}, expected a number > 0")
        for name, known in (("pass_", PASSES), ("dtype", (None, *DTYPES)), ("by", BY)):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise ValueError(f"{name.rstrip('_')}: is {given!r}, expected one of {known}")

    def asked(self) -> dict:
        """Column -> value of what fixes the records, without what was left open."""
        values = {c: getattr(self, "pass_" if c == "pass" else c) for c in SETTING}
        return {column: value for column, value in values.items() if value is not None}

    def words(self) -> str:
        """The setting in words, without the machine."""
        return f"{self.seq_len:,} tokens, {setting_words(self.asked())}"


def setting_words(setting: dict) -> str:
    """batch 1, 8 heads of 64, float32, causal, forward."""
    known = [part for part, column in _LEFT_OPEN.items() if column in setting]
    return in_words.case(setting, "batch", "heads of", *known, "pass")


def rows_of_machine(frame: pd.DataFrame, device: str | None) -> pd.DataFrame:
    """The rows of the one machine that `device` names, on one device and without trial runs.

    Raises Refused, listing the machines, where none or several match.
    """
    if device is None:
        machine = records.reporting_machine(frame)
    else:
        kinds = frame.drop_duplicates("machine")
        names = {row["machine"]: machine_words(row) for _, row in kinds.iterrows()}
        matching = [name for name in names if device.lower() == name.lower()]
        matching = matching or [
            name for name, words in names.items() if device.lower() in f"{name} {words}".lower()
        ]
        if len(matching) != 1:
            what = f"matches {len(matching)} machines; name one of"
            what = what if matching else "no record of it yet; there are"
            listed = "; ".join(names[name] for name in sorted(matching or names))
            raise Refused(f"device {device!r}: {what}: {listed}")
        machine = matching[0]
    rows = frame[(frame["machine"] == machine) & ~frame["experiment"].isin(NOT_SYSTEMS)]
    # The step of a training is more than a pass of its attention.
    rows = rows[rows["recipe"].isna()]
    alone = rows["world_size"].isna() | (rows["world_size"] == 1)
    rows = rows[alone & (rows["kv_heads"] == rows["heads"])]
    # A rank on a CPU has one core: it is not compared with systems that use all cores.
    of_ranks = (rows["device_kind"] == "cpu") & (rows["world_size"] == 1)
    rows = rows if of_ranks.all() else rows[~of_ranks]
    real = rows[rows["tier"] != "smoke"]
    return rows if real.empty else real


def machine_words(row: pd.Series) -> str:
    """2-core AMD EPYC (amd-epyc-2core-111acf)."""
    name = views.device(row)
    return name if row["machine"] in name else f"{name} ({row['machine']})"


def resolve(rows: pd.DataFrame, question: Question) -> tuple[Question, pd.DataFrame]:
    """The question with its type and causality filled in, and the rows of exactly that setting.

    Raises Refused naming the nearest settings that were measured.
    """
    same = _where(rows, question.asked())
    if same.empty:
        raise Refused(_unmeasured(rows, question))
    groups = []
    for (dtype, causal), group in same.groupby(["dtype", "is_causal"]):
        timed = group[group["status"] == "ok"].groupby("system")["seq_len"].agg(["min", "max"])
        if timed.empty:
            continue
        around = (timed["min"] <= question.seq_len) & (question.seq_len <= timed["max"])
        # Where no system was timed around that length, the type timed nearest to it.
        away = timed.apply(lambda ends: _away(question.seq_len, *ends), axis=1).min()
        key = (-int(around.sum()), away, PREFERRED.index(dtype), not causal)
        groups.append((key, replace(question, dtype=dtype, is_causal=bool(causal))))
    if not groups:
        raise Refused(_unmeasured(rows, question))
    settled = min(groups, key=lambda group: group[0])[1]
    return settled, _where(same, settled.asked())


def nearest_settings(rows: pd.DataFrame, question: Question) -> list[str]:
    """The measured settings that differ least from the asked one, with their lengths."""
    asked, found = question.asked(), []
    for values, group in rows[rows["status"] == "ok"].groupby(list(SETTING)):
        setting = dict(zip(SETTING, values, strict=True))
        differing = [c for c, value in asked.items() if setting[c] != value]
        lengths = sorted(int(n) for n in set(group["seq_len"]))
        away = min(abs(math.log(n / question.seq_len)) for n in lengths)
        off = sum(
            abs(math.log(setting[c] / asked[c]))
            for c in differing
            if c in ("heads", "head_dim", "batch")
        )
        text = f"{setting_words(setting)}: {span(lengths)} tokens, {_counted(group)}"
        found.append((len(differing), off, away, text))
    return [text for *_, text in sorted(found)[:NEAREST]]


def _away(seq_len: int, low: float, high: float) -> float:
    """How far (log) a length lies outside of what was timed."""
    return max(math.log(low / seq_len), math.log(seq_len / high), 0.0)


def _counted(group: pd.DataFrame) -> str:
    count = group["system"].nunique()
    return f"{count} system{'' if count == 1 else 's'}"


def _where(rows: pd.DataFrame, setting: dict) -> pd.DataFrame:
    for column, value in setting.items():
        rows = rows[rows[column] == value]
    return rows


def _unmeasured(rows: pd.DataFrame, question: Question) -> str:
    lines = [f"not measured: {question.words()}"]
    for column, value in question.asked().items():
        if value not in set(rows[column]):
            measured = _listed(sorted(set(rows[column])))
            lines.append(f"{column} {value}: never measured on this machine, only {measured}")
    lines.append("the nearest settings that were:")
    return "\n".join([*lines, *(f"  {text}" for text in nearest_settings(rows, question))])


def _listed(values: Iterable) -> str:
    return ", ".join(str(value) for value in values)
