"""A campaign's archive: packed on the machine that measured, unpacked at home as hostile input.

Its members, in this order, are `campaign.json`, `summary.md`, `tiles/TABLE.json`,
`steps/STEP.json`, `records/MACHINE/ROUND/CASE.json` and `logs/NAME`, so that of an
archive cut short the least is lost.
"""

from __future__ import annotations

import itertools
import lzma
import os
import stat
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments import tar_stream
from experiments.atomic_write import atomic_write
from experiments.shown import shown

MANIFEST, SUMMARY = "campaign.json", "summary.md"
# Bytes of an archive, and of what it unpacks to: a member, all of them with their headers.
MAX_BYTES, MAX_MEMBER, MAX_TOTAL = 16 * 2**20, 4 * 2**20, 256 * 2**20
MAX_MEMBERS = 20_000
# Bytes of all logs together: the first of these with which the archive is small enough.
_LOGS_BYTES = (2 * 2**20, 2**19, 0)
# Some 500 records of 15 kB take 0.5 s at 0, 1 s at 1 and 10 s at 6, for an archive 4 % and
# 19 % smaller; real records compress 12 fold at 0, in 0.1 s.
_PRESET = 0
# Folders in the order they are packed, and how deep their files lie.
_DEPTHS = {"tiles": 2, "steps": 2, "records": 4, "logs": 2}


class ArchiveError(ValueError):
    """An archive that cannot be written, or no place to unpack it: says what and why."""


@dataclass(frozen=True)
class Refused:
    """name: of the member, or of the archive itself; printable, whatever stood there."""

    name: str
    reason: str


def pack(folder: Path, target: Path) -> int:
    """Write what belongs to the campaign in `folder` to `target`, whole; returns its bytes.

    The same files make the same archive. Where it would be 16 MiB or more, and of logs over
    2 MiB together, the logs are cut to their ends, equally and the longest first, and at last
    left out. ArchiveError where it is too large without any, or is more than `unpack` takes;
    OSError where it cannot be written.
    """
    folder, target = Path(folder), Path(target)
    if not folder.is_dir():
        raise ArchiveError(f"{folder}: no such folder")
    listed = _listed(folder)
    kept = [(name, path) for name, path in listed if not name.startswith("logs/")]
    logs = [(name, path) for name, path in listed if name.startswith("logs/")]
    for allowed in _LOGS_BYTES:
        try:
            packed = _packed(kept, _cut(logs, allowed))
            break
        except ArchiveError as error:
            if not allowed:
                raise ArchiveError(f"{target}: without any log: {error}") from None
    with atomic_write(target) as partial, open(partial, "wb") as file:
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
    return len(packed)


def unpack(archive: Path, into: Path) -> list[Refused]:
    """Unpack to `into`, absent or empty; returns what was refused and why.

    Only regular files of a campaign's own names, each once, are written, and within the
    bounds above. Of a file cut short or damaged what came before is kept, and the break is
    refused under the archive's name. OSError where the archive cannot be read or `into`
    not be written, ArchiveError where something lies there.
    """
    archive, into = Path(archive), Path(into)
    refused: list[Refused] = []
    taken: dict[str, str] = {}
    with open(archive, "rb"):
        into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise ArchiveError(f"{into}: expected an empty folder to unpack to")
    found = tar_stream.members(archive, count=MAX_MEMBERS, each=MAX_MEMBER, total=MAX_TOTAL)
    try:
        for member in found:
            try:
                name = member.name.decode()
            except UnicodeDecodeError:
                refused.append(Refused(shown(repr(member.name)), "its name is not UTF-8"))
                continue
            if member.is_folder:
                name = name.rstrip("/") or name
            # As `tar c .` writes them.
            name = name.removeprefix("./")
            reason = member.fault or _why_not_named(name, member.is_folder)
            if reason is None and not member.is_folder:
                reason = _why_taken(name, taken)
            if reason:
                refused.append(Refused(shown(name), reason))
            elif not member.is_folder:
                path = into / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as file:
                    file.write(member.data)
    except tar_stream.Broken as broken:
        refused.append(Refused(shown(archive.name), str(broken)))
    return refused


def _why_not_named(name: str, is_folder: bool) -> str | None:
    """Why `name` is none of a campaign's, or None."""
    parts = name.split("/")
    if name.startswith("/"):
        return "its name starts at the root"
    if ".." in parts:
        return "its name leads out of the folder (..)"
    if is_folder and name in (".", *_DEPTHS):
        return None
    for part in parts:
        if not part or part.startswith(".") or not part.isprintable() or "\\" in part:
            return "its name is none of a campaign's (empty, hidden or unprintable part)"
        if len(part.encode()) > 255:
            return "its name has a part of more than 255 bytes"
    depth = _DEPTHS.get(parts[0], 0)
    if is_folder:
        fits = len(parts) < depth
    elif parts[0] in ("tiles", "steps", "records"):
        fits = len(parts) == depth and name.endswith(".json")
    else:
        fits = name in (MANIFEST, SUMMARY) or len(parts) == depth
    if fits:
        return None
    folders = "tiles/*.json, steps/*.json, records/*/*/*.json, logs/*"
    return f"is none of {MANIFEST}, {SUMMARY}, {folders}"


def _why_taken(name: str, taken: dict[str, str]) -> str | None:
    """Why `name` is one of those `taken`, to some file system; else it is added to them."""
    # As file systems that fold case or compose accents see it.
    key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", name).casefold())
    if key not in taken:
        taken[key] = name
        return None
    if taken[key] == name:
        return "is in the archive twice: the first is taken"
    return f"differs only in case or accents' form from {shown(taken[key])}"


def _listed(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of every regular file of a campaign under `folder`, in order."""
    found = []
    for top, folders, files in os.walk(folder):
        for file in files:
            path = Path(top, file)
            name = path.relative_to(folder).as_posix()
            if _is_text(name) and not _why_not_named(name, False) and _is_regular(path):
                found.append((name, path))
        # What lies deeper is none of a campaign's.
        depth = len(Path(top).relative_to(folder).parts)
        folders[:] = [f for f in folders if depth or f in _DEPTHS]
    order = [MANIFEST, SUMMARY, *_DEPTHS]
    return sorted(found, key=lambda one: (order.index(one[0].split("/")[0]), one[0]))


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _cut(logs: list[tuple[str, Path]], allowed: int) -> Iterator[tuple[str, bytes]]:
    """The ends of `logs`, of `allowed` bytes together: the longest are cut, to one length."""
    if not allowed:
        return
    sizes = sorted(path.stat().st_size for _, path in logs)
    left, share = allowed, MAX_MEMBER // 2
    for number, size in enumerate(sizes):
        equal = left // (len(sizes) - number)
        if size > equal:
            share = min(share, equal)
            break
        left -= size
    for name, path in logs:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - share))
            end = file.read(share)
        if size > share:
            end = f"[the first {size - share:,} bytes are left out here]\n".encode() + end
        yield name, end


def _packed(kept: list[tuple[str, Path]], logs: Iterator[tuple[str, bytes]]) -> bytes:
    """The archive; ArchiveError where it, a member or their number is larger than it may be."""
    xz, parts, total, headers = lzma.LZMACompressor(preset=_PRESET), [], 0, 0
    for name, data in itertools.chain(((name, path.read_bytes()) for name, path in kept), logs):
        if len(data) > MAX_MEMBER:
            raise ArchiveError(f"{name} has {len(data):,} bytes, and may have {MAX_MEMBER:,}")
        info = tarfile.TarInfo(name)
        info.size = len(data)
        # In a pax header before the member, as is a name that its own has no room for.
        info.pax_headers = {"comment": tar_stream.comment(data)}
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8")
        block = header + data + bytes(-len(data) % tar_stream.BLOCK)
        parts.append(xz.compress(block))
        total += len(block)
        headers += len(header) // tar_stream.BLOCK
    end = bytes(2 * tar_stream.BLOCK)
    parts += [xz.compress(end), xz.flush()]
    for what, found, most in (
        ("bytes packed", sum(map(len, parts)), MAX_BYTES),
        ("bytes", total + len(end), MAX_TOTAL),
        ("headers", headers, MAX_MEMBERS),
    ):
        if found >= most:
            raise ArchiveError(f"{found:,} {what}, and must be under {most:,}")
    return b"".join(parts)
