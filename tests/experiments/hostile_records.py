"""Records that nobody should believe, made of a valid one: each with what is to be said of it.

What a message must name stands with each: a field, or "place", "file", or JSON that is none.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_DELETED = object()
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Hostile:
    """field: what is named of it. lay: writes it, given the place where a valid one would lie."""

    name: str
    field: str
    lay: Callable[[Path, dict], Path]


def _with(path: str, value) -> Callable[[dict], dict]:
    def change(valid: dict) -> dict:
        data = copy.deepcopy(valid)
        *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        at = data
        for key in above:
            at = at[key]
        new = value(at.get(last)) if callable(value) else value
        if new is _DELETED:
            del at[last]
        else:
            at[last] = new
        return data

    return change


def _changed(name: str, change: Callable[[dict], dict], field: str) -> Hostile:
    def lay(place: Path, valid: dict) -> Path:
        return _put(place, json.dumps(change(valid)).encode())

    return Hostile(name, field, lay)


def _put(place: Path, content: bytes) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


# Path of a field, value, and where it is not the field what is named.
_VALUES = [
    ("schema_version", 1),
    ("schema_version", 2.0),
    ("schema_version", True),
    ("schema_version", "2"),
    ("tier", "huge"),
    ("tier", None),
    ("variant", "none-such"),
    ("variant", "../../x"),
    ("variant", 3),
    ("status", "fine"),
    ("status", "oom", "reason"),
    ("reason", "none is needed"),
    ("backend", None),
    ("backend", "<script>alert(1)</script>"),
    ("backend", "x" * 3000),
    ("realised_density", None),
    ("realised_density", 0.0),
    ("realised_density", -0.0),
    ("realised_density", -0.5),
    ("realised_density", 1.5),
    ("realised_density", 0.25),
    ("realised_density", "1"),
    ("useful_flops", None),
    ("useful_flops", 0),
    ("useful_flops", -1),
    ("useful_flops", 1),
    ("useful_flops", 10**30),
    ("useful_flops", 10**4000),
    ("useful_flops", 1e9),
    ("useful_flops", True),
    ("ceilings", None),
    ("ceilings", []),
    ("ceilings.matmul_flops_per_s", 0.0),
    ("ceilings.matmul_flops_per_s", -1e11),
    ("ceilings.matmul_flops_per_s", 1e20),
    ("ceilings.matmul_flops_per_s", 1.0),
    ("ceilings.copy_bytes_per_s", 1e30),
    ("ceilings.copy_bytes_per_s", NAN),
    ("replicates", []),
    ("replicates", {}),
    ("replicates", "many"),
    ("replicates.0", 5),
    ("replicates.0.samples_ms", [], "replicates"),
    ("replicates.0.samples_ms", [0.0]),
    ("replicates.0.samples_ms", [-1.0]),
    ("replicates.0.samples_ms", [NAN]),
    ("replicates.0.samples_ms", [INF]),
    ("replicates.0.samples_ms", ["1.5"]),
    ("replicates.0.samples_ms", [True]),
    ("replicates.0.samples_ms", [None]),
    ("replicates.0.samples_ms", [1e-9]),
    ("replicates.0.samples_ms", [1e-3]),
    ("replicates.0.samples_ms", [1e300]),
    ("replicates.0.samples_ms", [1e7], "wall_s"),
    ("replicates.0.samples_ms", [[1.0]]),
    ("replicates.0.peak_memory_bytes", -1),
    ("replicates.0.peak_memory_bytes", 0),
    ("replicates.0.peak_memory_bytes", 1e9),
    ("replicates.0.peak_memory_bytes", 2**50),
    ("replicates.0.peak_memory_bytes", 10**40),
    ("replicates.0.source_ms", [1.0]),
    ("replicates.0.timed_by", "sundial"),
    ("replicates.0.timed_by", "events"),
    ("replicates.0.host_ms", 1.0),
    ("replicates.0.host_ms", -1.0),
    ("replicates.0.energy_j", -3.0),
    ("replicates.0.ranks", None, "replicates"),
    ("replicates.0.ranks.0.rank", -1),
    ("replicates.0.ranks.0.rank", 7, "replicates.0.ranks"),
    ("replicates.0.ranks.0.bytes_sent", -1),
    ("replicates.0.ranks.0.compute_ms", [-1.0]),
    ("replicates.0.ranks.0.compute_ms", [9e7]),
    ("replicates.0.ranks.0.wait_ms", [INF]),
    ("replicates.0.calls", {"first_ms": 1.0}),
    ("error", None),
    ("error.rows_checked", 0),
    ("error.rows_checked", 10**9),
    ("error.reference", "a\u202eb"),
    ("error.output.relative_rms", -1e-7),
    ("error.output.relative_rms", 0.5),
    ("error.output.relative_rms", NAN),
    ("error.output.baseline_relative_rms", 1e9),
    ("error.output.max_abs", -1.0),
    ("error.gradient", "none"),
    ("gauges", {}),
    ("gauges.before.dense_ms", 0.0),
    ("gauges.before.dense_ms", 1e-6),
    ("gauges.after.matmul_ms", 1e-6),
    ("gauges.after.copy_ms", 1e8),
    ("gauges.after.copy_ms", -0.0),
    ("deviation", {"variant": "dense"}),
    ("machine.id", "../../../tmp/x"),
    ("machine.id", "nvidia-h200-3f9a1c"),
    ("machine.cores", 0),
    ("machine.cores", 64, "machine.id"),
    ("machine.cores", 10**9),
    ("machine.cores", 2.0),
    ("machine.cpu", "Another CPU", "machine.id"),
    ("machine.device", "<b>card</b>"),
    ("machine.device_kind", "tpu"),
    ("machine.device_kind", "cuda", "machine.id"),
    ("machine.memory_bytes", -1),
    ("machine.memory_bytes", 2**45, "machine.id"),
    ("machine.device_memory_bytes", 2**45, "machine.device"),
    ("machine.driver", "570", "machine.device"),
    ("machine.system", "Linux\n6"),
    ("machine.host", None),
    ("machine.host", {}),
    ("machine.host.id", "00000000"),
    ("machine.host.stepping", 99, "machine.host.id"),
    ("machine.host.boot", "zzzzzzzz"),
    ("machine.host.caches", {"L1\x00": 1}),
    ("machine.cards", []),
    ("machine.cards", "GPU-0"),
    ("machine.cards", [{"uuid": "GPU-0\x1b[2J"}]),
    ("software", []),
    ("software.torch", "2.13\x1b[2J"),
    ("software.git_commit", "x" * 40),
    ("software.git_commit", "main"),
    ("software.git_dirty", "no"),
    ("software.code_digest", "feedface"),
    ("software.code_digest", "Z" * 16),
    ("software.tile_tables", "../x"),
    ("started_at", 5),
    ("started_at", "2026-11-28"),
    ("started_at", "2026-11-28T12:00:00"),
    ("started_at", "2999-01-01T00:00:00+00:00"),
    ("started_at", "0001-01-01T00:00:00+14:00"),
    ("started_at", "9999-12-31T23:59:59-14:00"),
    ("started_at", "yesterday"),
    ("wall_s", 0),
    ("wall_s", -1.0),
    ("wall_s", 1e-6),
    ("wall_s", INF),
    ("wall_s", "long"),
    ("wall_s", 1e12),
    ("command", "rm -rf /"),
    ("command", "python -m experiments run --tier laptop --case x; rm -rf /"),
    ("command", 7),
    ("case", []),
    ("case.seq_len", -4096),
    ("case.seq_len", 4096.0),
    ("case.seq_len", "4096"),
    ("case.seq_len", True),
    ("case.seq_len", 77, "case"),
    ("case.seq_len", 10**4000, "case"),
    ("case.heads", 10**12, "case"),
    ("case.dtype", "int4"),
    ("case.dtype", "bfloat16", "case"),
    ("case.seed", -1),
    ("case.seed", 77, "case"),
    ("case.is_causal", 1),
    ("case.segment_lengths", [-1], "case"),
    ("case.segment_lengths", [True]),
    ("case.world_size", 0),
    ("case.sparsity", 1.5, "case"),
    ("experiment", "dilated"),
    ("\x1b[2J", 1, "\\x1b[2J"),
    ("\ud800", 1, "record"),
    ("wall_s", _DELETED),
    ("machine", _DELETED),
]
_FAILED = {"status": "failed", "reason": "wrong", "error": None}


def _text(name: str, text, field: str) -> Hostile:
    """A file of this text, bytes or what makes them of the valid record's text."""

    def lay(place: Path, valid: dict) -> Path:
        made = text(json.dumps(valid)) if callable(text) else text
        return _put(place, made if isinstance(made, bytes) else made.encode())

    return Hostile(name, field, lay)


_RAW = [
    _text("empty", b"", "not JSON"),
    _text("zeros", bytes(4096), "not JSON"),
    _text("cut", lambda text: text[: len(text) // 2], "not JSON"),
    _text("null", "null", "schema_version"),
    _text("list", "[]", "schema_version"),
    _text("number", "5", "schema_version"),
    _text("string", '"record"', "schema_version"),
    _text("bom", lambda text: b"\xef\xbb\xbf" + text.encode(), "not JSON"),
    _text("utf-16", lambda text: text.encode("utf-16"), "not JSON"),
    _text("latin-1", lambda text: text.replace("AMD", "\xc4MD").encode("latin-1"), "not JSON"),
    _text("json5", lambda text: text.replace('"tier"', "tier"), "not JSON"),
    _text("comma", lambda text: f"{text[:-1]},}}", "not JSON"),
    _text("comment", lambda text: f"// mine\n{text}", "not JSON"),
    _text("two", lambda text: text + text, "not JSON"),
    _text("html", "<!doctype html><p>404", "not JSON"),
    _text("deep-list", "[" * 100_000, "not JSON"),
    _text("deep-object", '{"a":' * 100_000, "not JSON"),
    _text(
        "long-number", lambda text: text.replace('"seed": 0', f'"seed": {"9" * 5000}'), "not JSON"
    ),
    _text("1e400", lambda text: f'{text[:-1]}, "wall_s2": 1e400}}', "wall_s2"),
    _text("key-twice", lambda text: f'{text[:-1]}, "wall_s": 1.0}}', "wall_s"),
    _text("inner-key-twice", lambda text: text.replace('"cores"', '"cores": 2, "cores"'), "cores"),
    _text("large", lambda text: text + " " * 2**20, "file"),
    _text("huge-list", lambda text: text.replace("[", f"[{'1.0, ' * 300_000}", 1), "file"),
    _text("huge-text", lambda text: f'{text[:-1]}, "x": "{"x" * 2**21}"}}', "file"),
]


def _elsewhere(name: str, field: str, place_of: Callable[[Path], Path]) -> Hostile:
    """The valid record at another place than its own."""
    return Hostile(
        name, field, lambda place, valid: _put(place_of(place), json.dumps(valid).encode())
    )


def _link(name: str, target: str, field: str = "file", folder: bool = False) -> Hostile:
    def lay(place: Path, valid: dict) -> Path:
        place = place.parent if folder else place
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
        return place

    return Hostile(name, field, lay)


def _fifo(place: Path, valid: dict) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(place)
    return place


def _folder(place: Path, valid: dict) -> Path:
    place.mkdir(parents=True)
    return place


def _linked_to_a_valid_one(place: Path, valid: dict) -> Path:
    outside = _put(place.parents[2] / "outside.txt", json.dumps(valid).encode())
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    return place


_PLACES = [
    _elsewhere("another-case", "case", lambda place: place.with_name("dense_b1.json")),
    _elsewhere("braces", "case", lambda place: place.with_name("a{b}.json")),
    _elsewhere("newline", "case", lambda place: place.with_name("a\nerror: b.json")),
    _elsewhere("surrogate", "case", lambda place: place.with_name("a\udcff.json")),
    _elsewhere("star", "case", lambda place: place.with_name("*?[a].json")),
    _elsewhere("blank", "case", lambda place: place.with_name(f"{place.stem} .json")),
    _elsewhere("round-0", "place", lambda place: place.parent.with_name("round-0") / place.name),
    _elsewhere("no-round", "place", lambda place: place.parent.with_name("{r}") / place.name),
    _elsewhere(
        "round-of-no-date",
        "place",
        lambda place: place.parent.with_name("2026-99-99T999999Z") / place.name,
    ),
    _elsewhere(
        "another-round",
        "started_at",
        lambda place: place.parent.with_name("2025-01-01T000000Z") / place.name,
    ),
    _elsewhere(
        "another-machine",
        "machine.id",
        lambda place: place.parents[2] / "nvidia-h200-3f9a1c" / place.parent.name / place.name,
    ),
    _elsewhere("no-machine", "machine.id", lambda place: place.parents[2] / place.name),
    _elsewhere(
        "deep", "place", lambda place: place.parents[2] / "a" / "b" / Path(*place.parts[-3:])
    ),
    _link("link-to-zeros", "/dev/zero"),
    _link("link-to-a-password", "/etc/passwd"),
    _link("link-to-nothing", "/nowhere"),
    _link("link-to-itself", "x.json"),
    _link("linked-folder", "/etc", folder=True),
    Hostile("link-to-a-record", "file", _linked_to_a_valid_one),
    Hostile("fifo", "file", _fifo),
    Hostile("folder", "file", _folder),
]

HOSTILE = [
    *(
        _changed(
            f"{number:03}-{path}".encode("ascii", "replace").decode().replace("\x1b", "e"),
            _with(path, value),
            *(named or [path]),
        )
        for number, (path, value, *named) in enumerate(_VALUES)
    ),
    _changed("failed-with-samples", lambda valid: {**valid, **_FAILED}, "replicates"),
    _changed(
        "failed-with-error",
        lambda valid: {**valid, **_FAILED, "error": valid["error"], "replicates": []},
        "error",
    ),
    _changed(
        "many-samples",
        _with("replicates.0.samples_ms", [1000.0] * 100_000),
        "wall_s",
    ),
    *_RAW,
    *_PLACES,
]


def lay(folder: Path, valid: dict) -> dict[str, Path]:
    """Write all of them into `folder`, each at folder/its name/machine/round/case.json.

    valid: a published record over ranks, with a host. Returns what lies where, by name.
    """
    return {one.name: lay_one(one, folder / one.name, valid) for one in HOSTILE}


def lay_one(one: Hostile, folder: Path, valid: dict) -> Path:
    """Write one of them into `folder`, a folder of all machines."""
    case = valid["command"].rpartition(" ")[2]
    round_ = valid["started_at"].replace(":", "").replace("+0000", "Z")
    return one.lay(folder / valid["machine"]["id"] / round_ / f"{case}.json", valid)
