"""Compiles the kernels for any card, without it, and prints registers, spills and shared memory.

    python -m models.kernels.compile [TABLE] [--capability 80 90 100] [--quiet]

compiles every entry of the tile tables in the forms that it is launched in (causal, carried and
base branch, ragged end, ...), and the Gluon kernel, table "gluon", in its own. It fails if a form
spills more than SPILL_BYTES, asks for more shared memory than the card has, has its tensor-core
instructions serialized, or exceeds its limit in `limits`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.kernels import (
    block_sparse_backward,
    block_sparse_forward,
    block_sparse_pair,
    dilated_backward,
    dilated_forward,
    gluon_forms,
    hop_backward,
    hop_forward,
    row_statistics,
    tiles,
)
from models.kernels.limits import LIMITS, Limit, over
from models.kernels.resource_usage import ResourceUsage, ptxas_log, read_usage
from models.kernels.tiles import Tile

KERNELS = {
    "dilated": {
        "forward": dilated_forward.forward,
        "backward_q": dilated_backward.backward_q,
        "backward_kv": dilated_backward.backward_kv,
    },
    "block_sparse": {
        "forward": block_sparse_forward.forward,
        "backward_q": block_sparse_backward.backward_q,
        "backward_kv": block_sparse_backward.backward_kv,
        "forward_pair": block_sparse_pair.forward_pair,
    },
    "hop": {
        "forward": hop_forward.forward,
        "backward_q": hop_backward.backward_q,
        "backward_kv": hop_backward.backward_kv,
    },
}
# These need no table: they use one tile.
STATISTICS = {
    "dilated": dilated_backward.statistics,
    "block_sparse": row_statistics.kernel,
    "hop": row_statistics.kernel,
}
_STRIDES = [f"{x}_{axis}" for x in "qkvgo" for axis in "bnh"]
_TYPES = {
    **dict.fromkeys(["lse", "grad_lse", "part", "part_lse", "part_k", "part_v"], "*fp32"),
    **dict.fromkeys(["table", "row_ptr", "statistics"], "*i64"),
    "base_rows": "i64",
    "padding": "*u8",
    **dict.fromkeys(["query_ids", "key_ids"], "*i32"),
    **dict.fromkeys(["col_idx", "order"], "*i32"),
    **dict.fromkeys([*_STRIDES, "l_b", "l_h", "l_n", "n_tokens", "n_heads", "n_blocks"], "i32"),
    **dict.fromkeys(["n_queries", "n_keys"], "i32"),
    "scale": "fp32",
}
_WRITTEN_FOR = 90
# Of the inputs' dtype, but float32 in a hop, whose results are parts of a sum.
_RESULTS = ("out", "grad_q", "grad_k", "grad_v")


@dataclass(frozen=True)
class Form:
    """One compiled form of a kernel: which, for which card and tile, with which constants."""

    table: str
    kernel: str
    capability: int
    bits: int
    tile: Tile
    constants: tuple[tuple[str, object], ...]

    def __str__(self) -> str:
        flags = " ".join(f"{name}={value}" for name, value in self.constants)
        return (
            f"{self.table}.{self.kernel} sm_{self.capability} {self.bits} bit {self.tile} {flags}"
        )


def limit_of(form: Form) -> Limit | None:
    """The limit of a form: for the forms most often launched, on Hopper in half precision."""
    constants = dict(form.constants)
    rare = [constants.get("EVEN_N") is False, constants["INDEX"] != 32, constants.get("SHORT")]
    rare += [constants.get("GROUP", 1) != 1, constants.get("HAS_KEYS") is False]
    rare += [constants.get("PADDED"), constants.get("BY_IDS")]
    if (form.capability, form.bits) != (_WRITTEN_FOR, 16) or any(rare):
        return None
    if constants.get("BLOCK_SIZE", 64) != 64:
        return None
    return LIMITS.get((form.table, form.kernel, constants["D"]))


def fault(form: Form | gluon_forms.Form, built: ResourceUsage) -> str | None:
    """Why a form may not be used, or None."""
    if isinstance(form, gluon_forms.Form):
        return gluon_forms.fault(form, built)
    tile, limit = form.tile, limit_of(form)
    scores = tile.block_m * tile.block_n / (32 * tile.warps)
    if form.kernel == "forward_pair":  # two tiles
        scores *= 2
    return built.fault(form.capability) or (limit and over(limit, built, scores, tile.warps))


def build(form: Form | gluon_forms.Form) -> ResourceUsage:
    """Compile one form down to machine code; needs no GPU."""
    if isinstance(form, gluon_forms.Form):
        return gluon_forms.build(form)
    kernel = (KERNELS[form.table] | {"statistics": STATISTICS[form.table]})[form.kernel]
    element = {16: "*fp16", 32: "*fp32"}[form.bits]
    types = _TYPES
    if form.table == "hop":
        types = _TYPES | dict.fromkeys(_RESULTS, "*fp32")
    options = form.tile.options(kernel)
    constants = dict(form.constants)
    constants |= {name: options.pop(name) for name in list(options) if name.isupper()}
    constants["VECTOR"] = 128 // form.bits
    constants["BLOCK_D"] = tiles.padded(constants["D"])
    constants["INDEX"] = {32: tl.int32, 64: tl.int64}[constants["INDEX"]]
    if not constants.get("PADDED"):
        constants["padding"] = None
    if not constants.get("BY_IDS"):
        constants |= {"query_ids": None, "key_ids": None}
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {n: "constexpr" if n in constants else types.get(n, element) for n in names}
    # Divisible as at a launch, except for strides, which in units of VECTOR may be anything.
    wide = {"n_tokens"} if constants.get("EVEN_N") else set()
    aligned = [n for n in names if signature[n].startswith("*") or n in wide]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(n),): value for n, value in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    start = time.monotonic()
    with ptxas_log() as log:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", form.capability, 32),
            options=options,
        )
    seconds = time.monotonic() - start
    files, shared = compiled.metadata_group, compiled.metadata.shared
    return read_usage(
        files, shared, form.capability, log.getvalue(), seconds,
        rotated=form.tile.rotated, with_loop=limit_of(form) is not None,
    )  # fmt: skip


def forms(table: str, kernel: str, entry: dict, tile: Tile) -> Iterator[Form]:
    """Every form of a kernel that a table's entry is compiled in here.

    For every entry, the form that takes most registers: causal, ragged. On Hopper, which the
    kernels are written for, also other forms that are launched often and, at head dimension 64 in
    half precision with blocks of 64, which stands for the rest, each other constant by itself.
    """
    base = {"IS_CAUSAL": True, "INDEX": 32}
    # A head dimension of 40 is padded to 64, and its columns are masked.
    rare = [{"INDEX": 64}, {"D": 40}]
    if kernel != "forward_pair":
        masked = "BY_IDS" if table == "block_sparse" else "PADDED"
        base |= {masked: False}
        rare[0] |= {masked: True}  # takes more registers than either by itself
    if table != "hop":
        base |= {"GROUP": 1, "PRECISION": "ieee"}
        rare.append({"GROUP": 4})
    if table == "dilated":
        base |= {"N_CARRIED": 4, "BASE": True, "HAS_KEYS": True, "SHORT": False}
        others = [{"BASE": False}]
        rare += [
            {"IS_CAUSAL": False},
            {"BASE": False, "IS_CAUSAL": False},
            {"HAS_KEYS": False},
            {"SHORT": True},
        ]
    elif table == "hop":
        # Most pieces are full rectangles.
        others = [{"IS_CAUSAL": False}]
    else:
        base |= {"BLOCK_SIZE": entry["block_size"], "PER_HEAD": True, "EVEN_N": False}
        others = []
        rare += [
            {"EVEN_N": True},
            {"EVEN_N": True, "IS_CAUSAL": False},
            {"PER_HEAD": False},
        ]
        if kernel == "forward_pair":
            base |= {"BY_HEAD": False}
            rare.append({"BY_HEAD": True, "GROUP": 2})
    if (entry["head_dim"], entry["bits"], entry.get("block_size", 64)) == (64, 16, 64):
        others = others + rare
    if table == "dilated" and entry["bits"] == 32:
        others = [*others, {"PRECISION": "tf32"}]
    if entry["capability"] != _WRITTEN_FOR:
        others = []
    for changes in [{}, *others]:
        constants = {"D": entry["head_dim"], **base, **changes}
        is_masked = constants.get("PADDED") or constants.get("BY_IDS")
        yield Form(
            table, kernel, entry["capability"], entry["bits"], tile.masked if is_masked else tile,
            tuple(constants.items()),
        )  # fmt: skip


def table_forms(table: str, capabilities: Collection[int]) -> list[Form] | list[gluon_forms.Form]:
    """Every form of every entry of a table, or of the Gluon kernel, for cards of `capabilities`."""
    if table == gluon_forms.TABLE:
        return list(gluon_forms.forms(capabilities))
    found = [
        form
        for kernel, entries in tiles.read(table).items()
        for entry in entries
        if entry["capability"] in capabilities
        for form in forms(table, kernel, entry, tiles.tile_of(entry))
    ]
    tile = Tile(row_statistics.BLOCK, row_statistics.BLOCK, warps=4, stages=3)
    constants = {"HAS_GRAD_LSE": True, "INDEX": 64, "N_CARRIED": 4, "HAS_KEYS": True, "SHORT": True}
    for capability, dim in itertools.product(capabilities, (64, 96, 256)):
        form = Form(table, "statistics", capability, 16, tile, (("D", dim), *constants.items()))
        found.append(form)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compile the forms that `arguments` name; returns 1 if a form has a fault, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m models.kernels.compile", description=__doc__)
    choices = [*KERNELS, gluon_forms.TABLE]
    parser.add_argument("table", nargs="?", choices=choices, help="default: all")
    parser.add_argument(
        "--capability", type=int, nargs="+", choices=tiles.CAPABILITIES, default=tiles.CAPABILITIES
    )
    parser.add_argument("--quiet", action="store_true", help="show faults and the total only")
    options = parser.parse_args(arguments)
    tables = [options.table] if options.table else choices
    wanted = [form for table in tables for form in table_forms(table, options.capability)]
    faults = 0
    with ProcessPoolExecutor() as pool:
        for form, built in zip(wanted, pool.map(build, wanted), strict=True):
            wrong = fault(form, built)
            faults += wrong is not None
            if wrong or not options.quiet:
                print(f"{form}: {built}{': ' + wrong if wrong else ''}", flush=True)
    print(f"{len(wanted)} forms compiled, {faults} with a fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
