"""Tile tables are complete, and what they hold compiles; `.ci/run` compiles all of it."""

import itertools

import pytest

from experiments.tuning import plan
from models.errors import UnsupportedBackend
from models.kernels import compile, tiles
from models.kernels.compile import KERNELS
from models.kernels.resource_usage import SHARED_BYTES, SPILL_BYTES, ResourceUsage
from models.kernels.tiles import Tile

HEAD_DIMS, BITS = (32, 64, 128, 256), (16, 32)


@pytest.mark.parametrize("table", KERNELS)
def test_there_is_one_tile_for_everything_that_can_be_asked(table):
    made = tiles.read(table)
    assert list(made) == list(KERNELS[table])
    for kernel, entries in made.items():
        keys = [
            tuple(entry.get(k) for k in ("capability", "head_dim", "bits", "block_size"))
            for entry in entries
        ]
        if table != "block_sparse":
            wanted = list(itertools.product(tiles.CAPABILITIES, HEAD_DIMS, BITS, (None,)))
        else:
            wanted = list(itertools.product(tiles.CAPABILITIES, HEAD_DIMS, (16,), (16, 32)))
            # Where a block of 64 leaves no registers, it is split.
            wanted += itertools.product(tiles.CAPABILITIES, (32, 64, 128), (16,), (64,))
            keys = [key for key in keys if key[1::2] != (256, 64)]
        if kernel == "forward_pair":
            wanted = [(90, *values) for values in plan.PAIRED]
        assert sorted(keys, key=str) == sorted(wanted, key=str)
        assert all(entry["source"] for entry in entries)


def test_block_masks_tiles_are_whole_blocks():
    for kernel, entries in tiles.read("block_sparse").items():
        for entry in entries:
            own, step = entry["block_m"], entry["block_n"]
            if kernel == "backward_kv":
                own, step = step, own
            assert own == entry["block_size"] and step % entry["block_size"] == 0


def test_look_up_by_card_and_head_size():
    entry = next(
        entry
        for entry in tiles.read("dilated")["forward"]
        if (entry["capability"], entry["head_dim"], entry["bits"]) == (90, 128, 16)
    )
    for head_dim in (65, 96, 128):
        assert tiles.look_up("dilated", "forward", 90, head_dim, 16, None) == tiles.tile_of(entry)
    assert [tiles.generation(c) for c in (80, 86, 90, 100, 103, 120, 75)] == [
        80, 80, 90, 100, 100, 80, None,
    ]  # fmt: skip
    with pytest.raises(UnsupportedBackend, match="has no tile of forward for capability None"):
        tiles.look_up("dilated", "forward", 75, 64, 16, None)


def test_a_forced_tile_holds_inside_only():
    import torch

    q, tile = torch.zeros(1, 4, 1, 16), Tile(32, 16, 1, 1)
    with tiles.forced("dilated", "forward", tile):
        assert tiles.choose("dilated", "forward", q) == tile
        assert tiles.choose("dilated", "backward_q", q) == Tile(16, 16, 1, 1)
    assert tiles.choose("dilated", "forward", q) == Tile(16, 16, 1, 1)


def test_faults_are_named():
    clean = ResourceUsage(200, SPILL_BYTES, SHARED_BYTES[80], False, 1.0)
    assert clean.fault(80) is None and clean.fault(90) is None
    spilling = ResourceUsage(255, SPILL_BYTES + 4, 0, False, 1.0)
    assert "spills" in spilling.fault(90)
    assert "shared memory, the card has 101376" in ResourceUsage(9, 0, 102400, False, 1.0).fault(80)
    assert ResourceUsage(9, 0, 102400, False, 1.0).fault(90) is None
    assert "serialized" in ResourceUsage(9, 0, 0, True, 1.0).fault(90)


def test_forms_cover_both_launches_and_rare_constants():
    entry = {"capability": 90, "head_dim": 64, "bits": 16, "block_size": 64}
    tile = Tile(64, 64, 4, 2)
    dilated = [dict(f.constants) for f in compile.forms("dilated", "forward", entry, tile)]
    assert {f["BASE"] for f in dilated} == {f["IS_CAUSAL"] for f in dilated} == {True, False}
    assert {f["INDEX"] for f in dilated} == {32, 64}
    blocks = [dict(f.constants) for f in compile.forms("block_sparse", "forward", entry, tile)]
    assert {f["EVEN_N"] for f in blocks} == {f["PER_HEAD"] for f in blocks} == {True, False}
    assert {f["GROUP"] for f in blocks} == {1, 4}
    pairs = [dict(f.constants) for f in compile.forms("block_sparse", "forward_pair", entry, tile)]
    assert {f["BY_HEAD"] for f in pairs} == {True, False} and len(pairs) == len(blocks) + 1
    hop = [dict(f.constants) for f in compile.forms("hop", "forward", entry, tile)]
    assert {f["IS_CAUSAL"] for f in hop} == {True, False} and {f["D"] for f in hop} == {40, 64}


@pytest.mark.parametrize("table", KERNELS)
def test_every_kernel_is_compiled_with_masked_keys(table):
    """For Hopper, and not rotated; two tiles a program take no masks."""
    masked = [
        form
        for form in compile.table_forms(table, (90,))
        if {"PADDED", "BY_IDS"} & {name for name, value in form.constants if value is True}
    ]
    assert [form.kernel for form in masked] == list(tiles.KERNELS)
    assert not any(form.tile.rotated or compile.limit_of(form) for form in masked)


ONE_OF_EACH = """
from models.kernels import compile, tiles
for table, kernels in compile.KERNELS.items():
    for kernel in kernels:
        entry = next(
            entry for entry in tiles.read(table)[kernel]
            if (entry["capability"], entry["head_dim"], entry["bits"]) == (90, 64, 16)
            and entry.get("block_size", 64) == 64
        )
        form = next(compile.forms(table, kernel, entry, tiles.tile_of(entry)))
        print(table, kernel, compile.build(form).fault(90))
"""


def test_one_of_each_compiles_without_a_fault(compiler, tmp_path):
    """With the user's own cache of kernels, which spares half a minute of compiling."""
    wanted = [f"{table} {kernel} None" for table, of in KERNELS.items() for kernel in of]
    assert compiler.run(ONE_OF_EACH, tmp_path).splitlines() == wanted
