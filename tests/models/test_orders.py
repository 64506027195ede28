"""Token orders: who holds which positions, and cutting a sequence into shards and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.patterns.orders import CURVES, ORDERS, Grid, positions
from models.ring import shard, unshard

ALL_ORDERS = (*ORDERS, *(Grid(curve, 5) for curve in CURVES), Grid("hilbert"))
orders = st.sampled_from(ALL_ORDERS)


@settings(max_examples=200)
@given(order=orders, n=st.integers(0, 100), world_size=st.integers(1, 9))
def test_every_position_is_held_once_and_shares_are_even(order, n, world_size):
    held = [positions(order, n, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(held).sort().values, torch.arange(n))
    lengths = [len(x) for x in held]
    assert max(lengths) - min(lengths) <= (2 if order == "zigzag" else 1)


@pytest.mark.parametrize(
    "order, expected",
    (
        ("contiguous", [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]),
        # 8 chunks, of 2 2 2 1 1 1 1 1: rank 0 holds the first and the last.
        ("zigzag", [[0, 1, 10], [2, 3, 9], [4, 5, 8], [6, 7]]),
        ("striped", [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7]]),
        # Rows of ceil(sqrt(11)) = 4, every second one backwards.
        ("snake", [[0, 1, 2], [3, 7, 6], [5, 4, 8], [9, 10]]),
        # Squares of 2 x 2, each in the order of a Z.
        ("morton", [[0, 1, 4], [5, 2, 3], [6, 7, 8], [9, 10]]),
        # Of 0 1 5 4, 8 12 13 9, 10 14 15 11, 7 6 2 3.
        ("hilbert", [[0, 1, 5], [4, 8, 9], [10, 7, 6], [2, 3]]),
        (Grid("snake", 3), [[0, 1, 2], [5, 4, 3], [6, 7, 8], [10, 9]]),
        (Grid("row-major", 3), [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]),
    ),
    ids=str,
)
def test_positions_of_eleven_tokens_on_four_ranks(order, expected):
    assert [positions(order, 11, rank, 4).tolist() for rank in range(4)] == expected


@pytest.mark.parametrize("curve, steps", (("hilbert", 1), ("snake", 1), ("morton", None)))
def test_curves_walk_from_neighbour_to_neighbour(curve, steps):
    """Hilbert's and the snake never leap in a full square; Morton's Z curve does."""
    walk = torch.from_numpy(Grid(curve, 16).walk(256))
    row, column = walk // 16, walk % 16
    longest = int((row.diff().abs() + column.diff().abs()).max())
    assert longest == steps if steps else longest > 1


@pytest.mark.parametrize("curve", ("hilbert", "morton"))
def test_a_quarter_of_a_square_is_a_square(curve):
    """What 4 ranks hold of 16 x 16 tokens lies in 8 rows and 8 columns."""
    for rank in range(4):
        held = positions(Grid(curve, 16), 256, rank, 4)
        row, column = held // 16, held % 16
        assert int(row.max() - row.min()) == int(column.max() - column.min()) == 7


@settings(max_examples=150)
@given(
    order=orders,
    n=st.integers(0, 70),
    world_size=st.integers(1, 9),
    dim=st.integers(-3, 2),
)
def test_there_and_back(order, n, world_size, dim):
    """Values, and gradients through both: the weight of each token comes home to it."""
    size = [2, 3, 4]
    size[dim] = n
    x = torch.arange(24 // (2, 3, 4)[dim] * n, dtype=torch.float64).view(size).requires_grad_()
    shards = [shard(x, rank, world_size, order, dim) for rank in range(world_size)]
    for rank, part in enumerate(shards):
        held = positions(order, n, rank, world_size)
        assert torch.equal(part, x.index_select(dim, held))
    back = unshard(shards, order, dim)
    assert torch.equal(back, x)
    weights = torch.rand(size, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(back, x, weights)[0], weights)


@pytest.mark.parametrize("order", ("contiguous", "striped"))
def test_shards_are_views_where_the_order_allows(order):
    x = torch.zeros(2, 11, 3)
    shard(x, 1, 4, order)[:] = 1
    held = positions(order, 11, 1, 4)
    assert x.sum() == 2 * 3 * len(held) and (x[:, held] == 1).all()


def test_bad_arguments_are_named():
    x = torch.zeros(2, 10, 3)
    for arguments, message in (
        ((x, 4, 4), "rank=4: expected an integer from 0 to 3"),
        ((x, -1, 4), "rank=-1: expected"),
        ((x, True, 4), "rank=True: expected"),
        ((x, 0, 0), "world_size=0: expected an integer >= 1"),
        ((x, 0, 2.0), "world_size=2.0: expected an integer >= 1"),
        ((x, 0, 4, "spiral"), "order='spiral': expected one of contiguous, zigzag"),
        ((x, 0, 4, None), "order=None: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            shard(*arguments)
    with pytest.raises(ValueError, match=r"seq_len=-1: expected an integer >= 0"):
        positions("zigzag", -1, 0, 4)
    with pytest.raises(ValueError, match="shards=\\[\\]: expected one tensor a rank"):
        unshard([])
    uneven = [x[:, :5], x[:, :3]]
    with pytest.raises(
        ValueError, match=r"shards have \[5, 3\] tokens: expected \[4, 4\] in the order 'striped'"
    ):
        unshard(uneven, "striped")
    for arguments, message in (
        (("spiral",), "curve='spiral': expected one of row-major, snake, morton, hilbert"),
        (("snake", 0), "width=0: expected an integer >= 1 or None"),
        (("snake", True), "width=True: expected"),
        (("snake", 4.0), "width=4.0: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            Grid(*arguments)
