"""Main loops as they are read off disassembled code, and the limits that they are held to."""

from dataclasses import replace

import pytest

from models.kernels import compile, gluon_forms, tiles
from models.kernels.limits import LIMITS, Limit, over
from models.kernels.machine_code import MainLoop, busiest, programs_per_multiprocessor
from models.kernels.resource_usage import ResourceUsage, why_not_raced
from models.kernels.tiles import Tile

# Of a rotated loop, shortened; as nvdisasm writes it.
ROTATED = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   MUFU.EX2 R9, R9 ;
        /*0020*/                   WARPGROUP.ARRIVE ;
        /*0030*/                   HGMMA.64x128x16.F32 R24, gdesc[UR12], RZ, !UPT ;
        /*0040*/                   HGMMA.64x128x16.F32 R24, gdesc[UR12], R24, gsb0 ;
        /*0050*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0060*/                   HGMMA.64x64x16.F32 R88, R124, gdesc[UR12].tnspB, R88 ;
        /*0070*/                   MUFU.EX2 R190, R191 ;
        /*0080*/                   HGMMA.64x64x16.F32 R88, R132, gdesc[UR24].tnspB, R88, gsb0 ;
        /*0090*/              @!P0 MUFU.EX2 R193, R193 ;
        /*00a0*/                   LDGSTS.E.BYPASS.LTC128B.128 [R121+0x4000], [R170.64], !P1 ;
        /*00b0*/                   LDGSTS.E.64 [R121], [R171.64] ;
        /*00c0*/                   LDG.E.CONSTANT R3, [R4.64] ;
        /*00d0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*00e0*/                   MUFU.EX2 R9, R9 ;
        /*00f0*/               @P2 BRA `(.L_x_1) ;
.L_x_2:
        /*0100*/                   HGMMA.64x64x16.F32 R24, gdesc[UR12], RZ, !UPT, gsb0 ;
        /*0110*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0120*/                   FADD R1, R1, R2 ;
        /*0130*/                   FADD R1, R1, R2 ;
        /*0140*/                   FADD R1, R1, R2 ;
        /*0150*/                   BRA `(.L_x_2) ;
"""
LOOP = MainLoop(15, 4, 4, 2, {16: 1, 8: 1}, {4: 1})
CLEAN = MainLoop(448, 12, 66, 50, {16: 8}, {})


def test_the_busiest_loop_is_read():
    assert busiest(ROTATED) == LOOP
    assert busiest("/*0000*/ EXIT ;") is None


def test_a_product_left_running_counts_in_the_next_step():
    # The second wait lets the last group run on: what comes first in a step is beside it.
    relaxed = ROTATED.replace("gsb0, 0x0 ;\n        /*00e0*/", "gsb0, 0x1 ;\n        /*00e0*/")
    assert busiest(relaxed).overlapped == 4


@pytest.mark.parametrize(
    "registers, warps, shared, programs",
    (
        (255, 4, 65536, 2),
        (168, 4, 73728, 3),
        (169, 4, 73728, 2),
        (251, 8, 131072, 1),
        (32, 4, 0, 16),
    ),
)
def test_programs_of_a_multiprocessor(registers, warps, shared, programs):
    assert programs_per_multiprocessor(registers, warps, shared) == programs


@pytest.mark.parametrize(
    "change, told",
    (
        ({}, None),
        ({"loop": None}, "no asynchronous products"),
        ({"loop": replace(CLEAN, instructions=480)}, "7.50 instructions for each score, 7.4 are"),
        ({"loop": replace(CLEAN, copies={16: 8, 4: 2})}, "2 copies of less than 16 bytes"),
        ({"loop": replace(CLEAN, loads={4: 1})}, "waits for 1 loads"),
        (
            {"loop": replace(CLEAN, overlapped=0)},
            "0 of 66 exponentials run beside a product, 48 are wanted",
        ),
        ({"shared_bytes": 240_000}, "0 on a multiprocessor at once"),
    ),
)
def test_what_is_over_its_limit_is_told(change, told):
    built = replace(ResourceUsage(250, 0, 131072, False, 1.0, True, CLEAN), **change)
    found = over(Limit(7.4, beside=48), built, 64, 8)
    assert found is None if told is None else told in found


def test_a_rotated_loop_without_overlap_does_not_race():
    clean = ResourceUsage(250, 0, 131072, False, 1.0, True, CLEAN)
    idle = replace(clean, loop=replace(CLEAN, overlapped=0))
    assert why_not_raced([clean, idle], 90) is None  # one launch of two gains
    assert "no exponential runs beside" in why_not_raced([idle, idle], 90)
    assert "is for the asynchronous products of Hopper" in why_not_raced([clean], 100)
    assert "spills" in why_not_raced([clean, replace(clean, spill_bytes=100)], 90)


def test_every_limit_is_held_by_forms_of_the_tables():
    held = set()
    for table in compile.KERNELS:
        for form in compile.table_forms(table, (90,)):
            if compile.limit_of(form):
                held.add((table, form.kernel, dict(form.constants)["D"]))
    for form in gluon_forms.forms((90,)):
        if gluon_forms.limit_of(form):
            held.add((gluon_forms.TABLE, "forward", dict(form.constants)["D"]))
    assert held == set(LIMITS)


@pytest.mark.parametrize("change", ({"maxnreg": 0}, {"maxnreg": True}, {"rotated": 1}))
def test_odd_tiles_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        tiles.tile_of({"block_m": 64, "block_n": 64, "warps": 4, "stages": 3, **change})


def test_only_forward_kernels_are_rotated():
    from models.kernels import dilated_backward, dilated_forward

    tile = Tile(64, 64, 4, 3, 168, True)
    assert tile.options(dilated_forward.forward)["ROTATED"] is True
    assert "ROTATED" not in tile.options(dilated_backward.backward_q)
    assert tile.options(dilated_backward.backward_q)["maxnreg"] == 168
    for table in compile.KERNELS:
        for kernel, entries in tiles.read(table).items():
            turned = {entry["capability"] for entry in entries if tiles.tile_of(entry).rotated}
            assert turned <= ({90} if kernel == "forward" else set())
