"""Token orders and their locality: curves, and counts by hand and by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.patterns.curves import CURVES, Grid
from models.patterns.locality import locality
from models.patterns.orders import positions


@pytest.mark.parametrize("curve", CURVES)
@given(seq_len=st.integers(0, 300), width=st.none() | st.integers(1, 40))
def test_a_curve_visits_every_token_once(curve, seq_len, width):
    assert sorted(Grid(curve, width).walk(seq_len)) == list(range(seq_len))


@pytest.mark.parametrize(("curve", "largest_step"), [("hilbert", 1), ("snake", 1), ("morton", 16)])
def test_steps_of_a_curve_through_a_square(curve, largest_step):
    # Hilbert's curve and the snake go to a neighbour each time; the Z curve jumps, at most from
    # the end of the upper half of the square to the start of the lower: 15 columns and a row.
    row, column = np.divmod(Grid(curve, 16).walk(256), 16)
    steps = np.abs(np.diff(row)) + np.abs(np.diff(column))
    assert steps.max() == largest_step


def test_the_first_places_of_each_curve():
    #  0  1  2  3
    #  4  5  6  7
    #  8  9 10 11
    # 12 13 14 15
    first = {curve: Grid(curve, 4).walk(16)[:8].tolist() for curve in CURVES}
    assert first == {
        "row-major": [0, 1, 2, 3, 4, 5, 6, 7],
        "snake": [0, 1, 2, 3, 7, 6, 5, 4],
        "morton": [0, 1, 4, 5, 2, 3, 6, 7],
        "hilbert": [0, 1, 5, 4, 8, 12, 13, 9],
    }


def test_zigzag_gives_each_rank_a_chunk_from_either_end():
    held = [positions("zigzag", 16, rank, 4).tolist() for rank in range(4)]
    assert held == [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]
    assert positions("striped", 10, 1, 4).tolist() == [1, 5, 9]
    assert positions("contiguous", 10, 1, 4).tolist() == [3, 4, 5]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("width", [None, 9])
def test_locality_is_what_a_table_of_all_pairs_says(curve, width):
    seq_len, radius, block_size, world_size = 75, 2, 8, 3
    position = torch.arange(seq_len)
    if width is None:
        near = (position[:, None] - position).abs() <= radius
    else:
        row, column = position // width, position % width
        near = ((row[:, None] - row).abs() <= radius) & ((column[:, None] - column).abs() <= radius)
    walk = torch.from_numpy(Grid(curve, width).walk(seq_len))
    laid = near[walk][:, walk]
    blocks = [range(i, min(i + block_size, seq_len)) for i in range(0, seq_len, block_size)]
    tiles = [laid[list(a)][:, list(b)] for a in blocks for b in blocks]
    met = [tile for tile in tiles if tile.any()]
    shards = torch.arange(seq_len).tensor_split(world_size)
    received = 0
    for shard in shards:
        needed = laid[shard].any(0)
        needed[shard] = False
        received += needed.sum().item()
    found = locality(
        curve,
        seq_len,
        radius=radius,
        block_size=block_size,
        world_size=world_size,
        width=width,
    )
    assert found.distinct_blocks == pytest.approx(len(met) / len(blocks))
    assert found.fill == pytest.approx(near.sum().item() / sum(t.numel() for t in met))
    assert found.received == pytest.approx(received / seq_len)
    assert found.mean_step == pytest.approx(walk.diff().abs().double().mean().item())


def test_hilbert_helps_a_grid_and_harms_a_text():
    options = {"radius": 4, "block_size": 64, "world_size": 4}
    grid, text = (
        {curve: locality(curve, 4096, width=width, **options) for curve in CURVES}
        for width in (64, None)
    )
    # A window 9 wide meets 9 blocks that are rows, or 3 x 3 that are squares of 8 x 8, fewer at
    # the border. Squares it meets in the Z curve's blocks too: Hilbert's is no better here.
    assert grid["row-major"].distinct_blocks == (64 * 9 - 2 * (1 + 2 + 3 + 4)) / 64
    assert grid["hilbert"].distinct_blocks == ((8 * 3 - 2) / 8) ** 2
    assert grid["morton"].distinct_blocks == grid["hilbert"].distinct_blocks
    # Four shards are bands, or quadrants, with so many tokens near their edges.
    assert grid["row-major"].received == 3 * 2 * 4 * 64 / 4096
    assert grid["hilbert"].received == (4 * 2 * 4 * 32 + 4 * 16) / 4096
    assert text["hilbert"].distinct_blocks > 3 > text["row-major"].distinct_blocks
    assert text["row-major"].mean_step == 1 < text["hilbert"].mean_step


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"curve='peano': expected one of row-major"):
        Grid("peano")
    with pytest.raises(ValueError, match=r"width=0: expected an integer >= 1"):
        Grid("snake", 0)
    with pytest.raises(ValueError, match=r"radius=0: expected an integer >= 1"):
        locality("snake", 8, radius=0, block_size=4, world_size=1)
    with pytest.raises(ValueError, match=r"order='spiral': expected one of contiguous"):
        positions("spiral", 8, 0, 2)
    for rank in (2, -1, True, 0.0, np.int64(2)):
        with pytest.raises(ValueError, match=r"rank=.*: expected an integer from 0 to 1"):
            positions("striped", 8, rank, 2)


def test_numbers_of_numpy_are_numbers():
    assert Grid("snake", np.int16(3)) == Grid("snake", 3)
    got = positions("zigzag", np.int64(11), np.uint8(1), np.int32(2))
    assert torch.equal(got, positions("zigzag", 11, 1, 2))
    options = {"radius": 2, "block_size": 4, "world_size": 2}
    counts = {name: np.int64(value) for name, value in options.items()}
    assert locality("hilbert", np.int64(16), **counts) == locality("hilbert", 16, **options)
