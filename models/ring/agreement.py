"""Do all ranks ask for the same? A few numbers of each rank, told to every other."""

from __future__ import annotations

import hashlib
import struct
import weakref

import torch

from models.errors import DTYPES
from models.patterns.block_mask import BlockMask
from models.patterns.orders import positions
from models.ring.exchange import TERMS, Exchange

# What a rank tells; "tokens" alone may differ, as the order says.
_TERMS = (
    "batch",
    "tokens",
    "heads",
    "kv_heads",
    "head_dim",
    "dtype",
    "is_causal",
    "scale",
    "order",
    "pattern",
    "backend",
    "requires_grad",
    "key_padding_mask",
)
_TOKENS = _TERMS.index("tokens")
_REFUSED = -1
_mask_digests: weakref.WeakKeyDictionary[BlockMask, int] = weakref.WeakKeyDictionary()


def terms(q, k, is_padded, requires_grad, scale, order, pattern, request) -> list[int]:
    """This rank's terms as integers, in the order of _TERMS; q: (B, n, H, D), k: (B, n, Hkv, D)."""
    batch, tokens, heads, dim = q.shape
    return [
        batch,
        tokens,
        heads,
        k.shape[2],
        dim,
        DTYPES.index(q.dtype),
        int(request.is_causal),
        struct.unpack("<q", struct.pack("<d", scale))[0],
        _digest(repr(order).encode()),
        _pattern_digest(pattern),
        _digest(request.backend.encode()),
        int(requires_grad),
        int(is_padded),
    ]


def agree(exchange: Exchange, own: list[int] | None, device) -> list[list[int]]:
    """Every rank's terms, alike but for the tokens. own: None where this rank's were bad.

    ValueError on every rank that names those whose terms differ from most ranks' (not where own
    is None); RingError names the ranks that do not answer.
    """
    if exchange.world_size == 1:
        return [own]
    sent = torch.tensor(own or [_REFUSED] * len(_TERMS), dtype=torch.int64, device=device)
    table = sent.repeat(exchange.world_size, 1)
    others = [rank for rank in range(exchange.world_size) if rank != exchange.rank]
    exchange.post(
        [(rank, sent, TERMS) for rank in others], [(rank, table[rank], TERMS) for rank in others]
    ).wait()
    exchange.finish()
    found = table.tolist()
    if own is not None:
        _compare(found)
    return found


def _compare(table: list[list[int]]) -> None:
    """ValueError, the same on every rank, that names the ranks which differ from most."""
    refusing = [rank for rank, theirs in enumerate(table) if theirs[0] == _REFUSED]
    if refusing:
        raise ValueError(f"{_ranks(refusing)}: refused the arguments there; see the error there")
    for place, name in enumerate(_TERMS):
        values = [theirs[place] for theirs in table]
        if place == _TOKENS or len(set(values)) == 1:
            continue
        # Of as many on either side, those with rank 0 are right.
        usual = max(values, key=values.count)
        alike = [rank for rank, value in enumerate(values) if value == usual]
        told = "; ".join(
            f"rank {rank} has {_told(name, value)}"
            for rank, value in enumerate(values)
            if value != usual
        )
        raise ValueError(f"{told}: expected {_told(name, usual)}, as on {_ranks(alike)}")


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def check_lengths(table: list[list[int]], order) -> int:
    """The length of the whole sequence; ValueError unless every rank holds its part of it."""
    lengths = [row[_TOKENS] for row in table]
    seq_len, world_size = sum(lengths), len(lengths)
    for rank, length in enumerate(lengths):
        expected = len(positions(order, seq_len, rank, world_size))
        if length != expected:
            raise ValueError(
                f"rank {rank} has {length} tokens: expected {expected} of {seq_len} in the order "
                f"{order!r}, as `shard` cuts it; the ranks have {lengths}"
            )
    return seq_len


def _told(name: str, value: int) -> str:
    """A term as people write it."""
    if name == "dtype":
        return f"dtype={DTYPES[value]}"
    if name in ("is_causal", "requires_grad", "key_padding_mask"):
        return f"{name}={bool(value)}"
    if name == "scale":
        return f"scale={struct.unpack('<d', struct.pack('<q', value))[0]:g}"
    if name in ("order", "pattern", "backend"):
        return f"{'an' if name == 'order' else 'a'} {name} of digest {value & 0xFFFFFFFF:08x}"
    return f"{name}={value}"


def _pattern_digest(pattern) -> int:
    if not isinstance(pattern, BlockMask):
        return _digest(repr(pattern).encode())
    if pattern not in _mask_digests:
        lists = (pattern.row_ptr.cpu().numpy(), pattern.col_idx.cpu().numpy())
        content = b"".join(x.tobytes() for x in lists)
        _mask_digests[pattern] = _digest(b"%d" % pattern.block_size + content)
    return _mask_digests[pattern]


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "little")
