"""Reads a .tar.xz that nobody vouches for: as a stream, within bounds, links never followed.

Not by `tarfile`, which takes an extended header into memory whatever its size, and whose
errors are of many kinds.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
_MAGIC = b"\xfd7zXZ\0"
# Of one extended header: a name is at most a few hundred bytes.
HEADER_BYTES = 64 * 2**10
# What xz may take to unpack: its largest preset needs 65 MiB.
_MEMORY_BYTES = 128 * 2**20
_DIGEST = "sha256:"
_CHUNK = 64 * 2**10
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file",
    b"g": "a header for all members",
}


class Broken(ValueError):
    """Nothing more can be read: says why."""


@dataclass(frozen=True)
class Member:
    """name: as it stands in the archive. fault: why it must not be taken, None for a file.

    data: a file's content; None of folders and of what must not be taken.
    """

    name: bytes
    is_folder: bool
    fault: str | None
    data: bytes | None


def members(archive: Path, *, count: int, each: int, total: int) -> Iterator[Member]:
    """The members in order; Broken, after what came before, where the data is damaged.

    count: how many headers are read; each, total: bytes of a member and of all that the
    archive unpacks to. A member over `each` has a fault; past `count` or `total` the archive
    is Broken. OSError where the file cannot be read.
    """
    with open(archive, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise Broken("is no .tar.xz archive")
        file.seek(0)
        stream = _Xz(file, total)
        # From extended headers, for the member that follows them.
        name, size, fault, digest = None, None, None, None
        for _ in range(count):
            header = stream.read(BLOCK)
            if header == bytes(BLOCK):
                if stream.rest():
                    raise Broken("goes on after its end: what stands there is left out")
                return
            own_name, own_size, kind = _parsed(header)
            if kind in (b"x", b"L", b"K"):
                if own_size > HEADER_BYTES:
                    stream.skip(own_size)
                    fault = f"has an extended header of {own_size:,} bytes"
                    continue
                data = stream.read_padded(own_size)
                if kind == b"L":
                    name = data.rstrip(b"\0")
                elif kind == b"x":
                    fields = _fields(data)
                    name = fields.get(b"path", name)
                    size = _decimal(fields[b"size"]) if b"size" in fields else size
                    digest = _stated_digest(fields.get(b"comment", b""))
                    if any(key.startswith(b"GNU.sparse") for key in fields):
                        fault = fault or _of_kind(b"S")
                continue
            name = own_name if name is None else name
            # Links, devices and folders have no data, whatever size they state.
            size = 0 if kind in _WITHOUT_DATA else own_size if size is None else size
            is_extended = kind == b"S" and header[482]
            while is_extended:
                is_extended = stream.read(BLOCK)[504]
            if kind not in (b"0", b"\0", b"5"):
                fault = fault or _of_kind(kind)
            elif size > each:
                fault = fault or f"has {size:,} bytes, more than the {each:,} that a file may have"
            if fault or kind == b"5":
                stream.skip(size)
                yield Member(name, kind == b"5", fault, None)
            else:
                data = stream.read_padded(size)
                # xz's own checksum comes after all members: these may be damaged before it.
                if digest and hashlib.sha256(data).hexdigest() != digest:
                    fault = "is damaged: its SHA-256 is not the one that its header states"
                yield Member(name, False, fault, None if fault else data)
            name, size, fault, digest = None, None, None, None
        raise Broken(f"has more than the {count:,} members that an archive may have")


def comment(data: bytes) -> str:
    """The comment of a member's pax header by which damage to `data` is found."""
    return _DIGEST + hashlib.sha256(data).hexdigest()


def _stated_digest(text: bytes) -> str | None:
    """The SHA-256, as hex digits, of such a comment; None of another."""
    text = text.decode(errors="replace")
    return text.removeprefix(_DIGEST) if text.startswith(_DIGEST) else None


class _Xz:
    """Bytes of an .xz file, no more of them than `total`, and never many at once."""

    def __init__(self, file, total: int):
        self._file, self._left, self._total = file, total, total
        self._xz, self._ready, self._waiting = None, b"", b""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        parts, missing = [], size
        while missing:
            if not self._ready and not self._fill():
                raise Broken("is cut short")
            part, self._ready = self._ready[:missing], self._ready[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def read_padded(self, size: int) -> bytes:
        data = self.read(size)
        self.read(-size % BLOCK)
        return data

    def skip(self, size: int) -> None:
        left = size + -size % BLOCK
        while left:
            left -= len(self.read(min(left, _CHUNK)))

    def rest(self) -> bool:
        """Read on to the end, where xz's checksums are; whether any byte there is not 0."""
        found = False
        while self._ready or self._fill():
            found = found or self._ready.strip(b"\0") != b""
            self._ready = b""
        return found

    def _fill(self) -> bool:
        """Unpack a little more; False at the end of the file."""
        while not self._ready:
            if self._xz is None or self._xz.needs_input or self._xz.eof:
                self._waiting = self._waiting or self._file.read(_CHUNK)
                if self._xz is None or self._xz.eof:
                    # Streams may follow one another, with zeros between.
                    self._waiting = self._waiting.lstrip(b"\0") if self._xz else self._waiting
                    if not self._waiting:
                        self._waiting = self._file.read(_CHUNK)
                        if not self._waiting:
                            return False
                        continue
                    self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY_BYTES)
                elif not self._waiting:
                    raise Broken("is cut short")
            try:
                self._ready = self._xz.decompress(self._waiting, max_length=_CHUNK)
            except lzma.LZMAError as error:
                raise Broken(f"is damaged, or no .tar.xz archive ({error})") from None
            self._waiting = self._xz.unused_data
            self._left -= len(self._ready)
            if self._left < 0:
                raise Broken(f"unpacks to more than the {self._total:,} bytes that it may have")
        return True


def _parsed(header: bytes) -> tuple[bytes, int, bytes]:
    """Name, size in bytes and kind of a member, from its header."""
    # The checksum counts its own field as blanks.
    added = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if _number(header[148:156]) != added:
        raise Broken("is damaged, or no tar archive (a header's checksum is wrong)")
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return name, _number(header[124:136]), header[156:157]


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or, of 8 GiB and more, bytes after 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise Broken("is damaged, or no tar archive (a header's number is none)")
    return int(digits or b"0", 8)


def _fields(data: bytes) -> dict[bytes, bytes]:
    """The fields of an extended header, each "length key=value" and a line's end."""
    found, start = {}, 0
    while start < len(data):
        length = data[start : start + 8].split(b" ")[0]
        end = start + _decimal(length)
        key, separator, value = data[start + len(length) + 1 : end].partition(b"=")
        if end > len(data) or not separator or not value.endswith(b"\n"):
            raise Broken("is damaged (an extended header's fields do not fit)")
        found[key] = value[:-1]
        start = end
    return found


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise Broken("is damaged (an extended header's number is none)")
    return int(text)


def _of_kind(kind: bytes) -> str:
    return f"is {_KINDS.get(kind, f'of kind {kind!r}')}, not a file"
