"""Do all ranks call with the same arguments? Each rank sends a few integers to every other."""

from __future__ import annotations

import hashlib
import struct
import weakref

import torch

from models.patterns.block_mask import BlockMask
from models.patterns.curves import Grid
from models.patterns.orders import positions
from models.qkv import DTYPES
from models.ring.exchange import ARGUMENTS, Exchange, rank_names
from models.ring.options import RingOptions

# What each rank sends. Only "tokens" may differ between ranks, as the order determines.
_FIELDS = (
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
_TOKENS = _FIELDS.index("tokens")
_REFUSED = -1
_mask_digests: weakref.WeakKeyDictionary[BlockMask, int] = weakref.WeakKeyDictionary()


def encode_arguments(
    q: torch.Tensor, k: torch.Tensor, is_padded: bool, requires_grad: bool, options: RingOptions
) -> list[int]:
    """This rank's arguments as integers, in the order of `_FIELDS`.

    Args:
        q: (B, n, H, D), this rank's.
        k: (B, n, Hkv, D), this rank's.
        is_padded: whether there is a padding mask.
        requires_grad: whether q, k or v requires gradients.
        options: the other arguments.
    """
    batch, tokens, heads, dim = q.shape
    return [
        batch,
        tokens,
        heads,
        k.shape[2],
        dim,
        DTYPES.index(q.dtype),
        int(options.is_causal),
        struct.unpack("<q", struct.pack("<d", options.scale))[0],
        _digest(repr(options.given_order()).encode()),
        _pattern_digest(options.given_pattern()),
        _digest(options.backend.encode()),
        int(requires_grad),
        int(is_padded),
    ]


def gather_arguments(
    exchange: Exchange, own: list[int] | None, device: torch.device | str
) -> list[list[int]]:
    """Send this rank's arguments to all others, and check that those of all ranks agree.

    Args:
        exchange: with the other ranks.
        own: from `encode_arguments`; None where this rank's arguments are bad.
        device: where messages are sent from.

    Returns:
        The integers of each rank, equal but for the tokens where `own` is given.

    Raises:
        ValueError: the arguments differ, unless `own` is None. The same on every rank; names the
            ranks that differ from most.
        RingError: a rank does not answer.
    """
    if exchange.world_size == 1:
        return [own]
    sent = torch.tensor(own or [_REFUSED] * len(_FIELDS), dtype=torch.int64, device=device)
    table = sent.repeat(exchange.world_size, 1)
    others = [rank for rank in range(exchange.world_size) if rank != exchange.rank]
    exchange.post(
        [(rank, sent, ARGUMENTS) for rank in others],
        [(rank, table[rank], ARGUMENTS) for rank in others],
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
        raise ValueError(f"bad arguments on {rank_names(refusing)}; see the error there")
    for index, name in enumerate(_FIELDS):
        values = [theirs[index] for theirs in table]
        if index == _TOKENS or len(set(values)) == 1:
            continue
        # Of two values that are equally frequent, that of rank 0 is expected.
        usual = max(values, key=values.count)
        agreeing = [rank for rank, value in enumerate(values) if value == usual]
        differing = "; ".join(
            f"rank {rank} has {_in_words(name, value)}"
            for rank, value in enumerate(values)
            if value != usual
        )
        raise ValueError(
            f"{differing}: expected {_in_words(name, usual)}, as on {rank_names(agreeing)}"
        )


def check_lengths(table: list[list[int]], order: str | Grid) -> int:
    """The length of the whole sequence, from the arguments of all ranks.

    Args:
        table: from `gather_arguments`.
        order: token order.

    Raises:
        ValueError: a rank does not hold the tokens that the order assigns to it.
    """
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


def _in_words(name: str, value: int) -> str:
    """An argument as the caller wrote it, or its digest."""
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
