"""What the LongNet models are made of: schedule, xPos, block masks by length, configuration."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from models import LongNetConfig, LongNetLM
from models.language.block_masks import BlockMasks
from models.language.chosen_blocks import block_means, chosen_mask, chosen_row, kept_blocks
from models.language.schedule import schedule
from models.language.xpos import rotation
from models.patterns import block_builders
from tests.models.longnet_models import PATTERNS, config


@pytest.mark.parametrize(
    ("seq_len", "segment_lengths", "rates"),
    [
        # The paper's own.
        (32768, (2048, 4096, 8192, 16384, 32768), (1, 2, 4, 6, 12)),
        (16384, (1024, 2048, 4096, 8192, 16384), (1, 2, 4, 6, 12)),
        (1024, (64, 128, 256, 512, 1024), (1, 2, 4, 6, 12)),
        (1000, (125, 250, 500, 1000)[-4:], (1, 2, 4, 6)),
        (256, (64, 128, 256), (1, 2, 4)),
        (100, (100,), (1,)),
        (1, (1,), (1,)),
        (65536, (2048, 4096, 8192, 16384, 32768, 65536), (1, 2, 4, 6, 12, 24)),
        (
            2**20,
            tuple(2**i for i in range(11, 21)),
            (1, 2, 4, 6, 12, 24, 48, 96, 192, 384),
        ),
    ],
)
def test_schedules(seq_len, segment_lengths, rates):
    assert schedule(seq_len) == (segment_lengths, rates)


@given(seq_len=st.integers(1, 2**21), shortest=st.integers(1, 300))
def test_a_schedule_reaches_all_from_a_full_first_branch(seq_len, shortest):
    segment_lengths, rates = schedule(seq_len, shortest=shortest)
    assert segment_lengths[-1] == seq_len and rates[0] == 1
    assert segment_lengths[0] <= max(2048, 2 * shortest - 1)
    assert len(segment_lengths) == 1 or segment_lengths[0] >= shortest
    for shorter, longer in zip(segment_lengths, segment_lengths[1:], strict=False):
        assert 2 * shorter - 1 <= longer <= 2 * shorter


def test_schedules_of_nothing():
    with pytest.raises(ValueError, match="seq_len=0: expected an integer >= 1"):
        schedule(0)


def scores(positions, q, k, **options):
    turned = rotation(positions, q.shape[-1], **options)
    return torch.einsum("bnhd,bmhd->bhnm", turned.of_queries(q), turned.of_keys(k))


@pytest.mark.parametrize("scale_base", [None, 512.0])
def test_scores_depend_on_differences_of_positions_alone(scale_base):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 12, 2, 16, generator=generator) for _ in range(2))
    places = torch.tensor([0, 1, 2, 5, 9, 20, 77, 300, 301, 512, 900, 1023])
    options = {"center": 2048.0, "scale_base": scale_base}
    want = scores(places, q, k, **options)
    for shift in (1, 1000, 3000):
        torch.testing.assert_close(scores(places + shift, q, k, **options), want, rtol=0, atol=1e-4)


def test_a_score_decays_as_the_paper_says():
    """Of equal pairs of coordinates: sum of zeta^((n - m) / base) cos((n - m) theta)."""
    ones = torch.ones(1, 2, 1, 8)
    for distance in (0, 1, 7, 400):
        got = scores(torch.tensor([100, 100 + distance]), ones, ones, center=0.0, scale_base=512.0)
        want = 2 * sum(
            ((i / 4 + 0.4) / 1.4) ** (distance / 512) * math.cos(distance * 10000 ** (-i / 4))
            for i in range(4)
        )
        assert got[0, 0, 1, 0].item() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("longest", [64, 4096, 32768, 2**20])
def test_scales_fit_into_float16_at_any_length(longest):
    base = config(max_seq_len=longest).xpos_scale_base
    assert base == max(512, longest / 8)
    ends = torch.tensor([0, longest - 1])
    turned = rotation(ends, 64, center=longest / 2, scale_base=base)
    bound = (1.4 / 0.4) ** 4
    for cos, sin in (turned[:2], turned[2:]):
        length = torch.hypot(cos, sin)
        assert 1 / bound <= length.min() and length.max() <= bound * (1 + 1e-6)
    assert turned.of_queries(torch.full((1, 2, 1, 64), 8.0, dtype=torch.float16)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("base", "n"), [(1, 128), (512, 64)])
def test_the_smallest_scale_base_is_finite(dtype, base, n):
    network = LongNetLM(
        config(attention="dense", max_seq_len=128 * base, xpos_scale_base=base), dtype=dtype
    )
    ids = torch.randint(50, (1, n), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network(ids).isfinite().all()


def test_far_positions_are_turned_exactly():
    """In float32 the angle of position 500,001 would be wrong by up to 0.03."""
    turned = rotation(torch.tensor([500_001]), 8, center=0.0, scale_base=None)
    assert turned.q_cos[0, 0].item() == pytest.approx(math.cos(500_001), abs=1e-6)


def test_queries_are_turned_alike_eagerly_and_compiled():
    """Complex and real arithmetic; of a view that is not contiguous, with its gradients."""
    turned = rotation(torch.arange(5), 8, center=2.0, scale_base=512.0)
    x = torch.randn(5, 2, 3, 8, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    x.requires_grad_()
    cotangent = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(1))
    eager = turned.of_queries(x)
    compiled = torch.compile(turned.of_queries, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(eager, compiled, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(out, x, cotangent)[0] for out in (eager, compiled)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    by_hand = torch.view_as_complex(x.detach().double().reshape(2, 5, 3, 4, 2))
    by_hand = by_hand * torch.complex(turned.q_cos, turned.q_sin).to(torch.complex128)[:, None]
    by_hand = torch.view_as_real(by_hand).flatten(-2)
    torch.testing.assert_close(eager.double(), by_hand, rtol=0, atol=1e-6)


@given(n=st.integers(1, 100), pattern=st.sampled_from(PATTERNS[:-1]), is_causal=st.booleans())
def test_a_shorter_sequence_has_the_upper_left_part(n, pattern, is_causal):
    masks = BlockMasks(config("block-sparse", pattern, max_seq_len=100), is_causal)
    m = -(-n // 8)
    got = masks.of(n, torch.device("cpu"))
    got.check_fits(n, 4)
    assert torch.equal(got.to_dense(), masks.longest.to_dense()[:, :m, :m])
    assert masks.of(n, torch.device("cpu")) is got
    assert torch.equal(masks.row(m - 1)[0], masks.longest.to_dense()[0, m - 1].nonzero()[:, 0])


def test_a_mask_built_for_each_length_would_not_be_causal():
    """Why it is cut: what this builder draws for a head depends on the number of blocks."""
    options = {"sparsity": 0.5, "block_size": 8, "is_causal": True, "heads": 2}
    short, long = (block_builders.random(n, **options).to_dense() for n in (120, 160))
    assert not torch.equal(short, long[:, :15, :15])


@given(
    n=st.integers(1, 70),
    sparsity=st.sampled_from((0.0, 0.3, 0.5, 0.9)),
    is_causal=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(n=70, sparsity=0.5, is_causal=True, seed=0)
def test_blocks_are_chosen_by_the_first_token(n, sparsity, is_causal, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, h, 4, generator=generator) for h in (4, 2))
    options = {"sparsity": sparsity, "block_size": 8, "is_causal": is_causal}
    dense = chosen_mask(q, k, **options).to_dense()
    blocks = -(-n // 8)
    for head in range(4):
        means = [k[8 * j : 8 * j + 8, head // 2].mean(0) for j in range(blocks)]
        for i in range(blocks):
            others = range(i) if is_causal else [j for j in range(blocks) if j != i]
            best = sorted(others, key=lambda j: -(q[8 * i, head] @ means[j]).item())
            kept = max(1, round((1 - sparsity) * (i + 1 if is_causal else blocks)))
            want = {i, *best[: kept - 1]}
            assert set(dense[head, i].nonzero()[:, 0].tolist()) == want
    if is_causal:
        last = blocks - 1
        means = block_means(k[None], 8)[:, :, :last]
        kept = int(kept_blocks(torch.tensor([blocks]), sparsity))
        row = chosen_row(q[None, 8 * last], means, kept)[0]
        assert torch.equal(dense[:, last], torch.zeros(4, blocks).scatter(1, row, 1).bool())


def test_of_equal_scores_the_earlier_block_is_chosen():
    q, k = torch.ones(64, 1, 4), torch.zeros(64, 1, 4)
    dense = chosen_mask(q, k, sparsity=0.5, block_size=8, is_causal=True).to_dense()[0]
    assert dense[7].tolist() == [True, True, True, False, False, False, False, True]


def test_chosen_rows_are_as_long_as_builders_rows():
    for sparsity in (0.0, 0.35, 0.9):
        mask = block_builders.local_window(640, sparsity=sparsity, block_size=8, is_causal=True)
        assert torch.equal(kept_blocks(torch.arange(1, 81), sparsity), mask.lengths()[0])


def test_a_configuration_says_all_and_comes_back():
    made = LongNetConfig(100, 32768, 2, 96, 12)
    assert (made.kv_heads, made.ffn_dim, made.xpos_scale_base) == (12, 384, 4096.0)
    assert made.dilation_rates == (1, 2, 4, 6, 12)
    for one in (
        made,
        config("block-sparse", "random"),
        config("dense"),
        config("head-partitioned"),
    ):
        found = json.loads(one.to_json())
        assert set(found) == {field.name for field in dataclasses.fields(one)}
        assert LongNetConfig.from_json(one.to_json()) == one
    assert config("block-sparse", "random").pattern_seed == 0


BAD = [
    ({"vocab_size": 0}, "vocab_size=0: expected an integer >= 1"),
    ({"layers": 1.5}, "layers=1.5: expected an integer >= 1"),
    ({"embed_dim": 30}, "embed_dim=30: expected an even multiple of heads=4"),
    ({"embed_dim": 20}, "embed_dim=20: expected an even multiple of heads=4"),
    ({"kv_heads": 3}, "kv_heads=3: expected a divisor of heads=4"),
    ({"ffn_dim": -1}, "ffn_dim=-1: expected an integer >= 1"),
    ({"tied_embeddings": 1}, "tied_embeddings=1: expected True or False"),
    ({"xpos_scale_base": 0}, "xpos_scale_base=0: expected a positive number of tokens or None"),
    (
        {"xpos_scale_base": 511, "max_seq_len": 65536},
        "xpos_scale_base=511.0: expected at least max_seq_len / 128 = 512.0",
    ),
    ({"attention": "peers"}, "attention='peers': expected one of dense"),
    ({"dilation_rates": None}, "dilation_rates=None: expected both lists"),
    ({"segment_lengths": (8,)}, r"dilation_rates=\(1, 3\): expected 1"),
    ({"head_offset": "mod"}, "head_offset='mod': expected one of modulo, block"),
    ({"pattern": "random"}, "pattern='random': expected None with attention='dilated-sdpa'"),
    ({"sparsity": 0.5}, "sparsity=0.5: expected None"),
    ({"attention": "dense"}, r"segment_lengths=\[8, 32\]: expected None with attention='dense'"),
]
BAD_BLOCKS = [
    ({"pattern": None}, "pattern=None: expected one of local_window"),
    ({"pattern": "diagonal"}, "pattern='diagonal': expected one of local_window"),
    ({"sparsity": None}, "sparsity=None: expected a number, at least 0 and below 1"),
    ({"sparsity": 1}, "sparsity=1: expected a number, at least 0 and below 1"),
    ({"block_size": None}, "block_size=None: expected an integer >= 1"),
    ({"pattern_seed": 3}, "pattern_seed=3: expected None .* whose pattern is not 'random'"),
    ({"head_offset": "block"}, "head_offset='block': expected 'modulo'"),
    ({"attention": "ring-block-sparse", "pattern": "top_k"}, "pattern='top_k': expected another"),
    ({"attention": "ring-block-sparse-dilated", "pattern": "random"}, "expected 'dilated' with"),
]


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [("dilated-sdpa", *one) for one in BAD] + [("block-sparse", *one) for one in BAD_BLOCKS],
)
def test_bad_configurations(attention, options, message):
    good = json.loads(config(attention).to_json())
    with pytest.raises(ValueError, match=message):
        LongNetConfig(**good | options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "configuration=list: expected a JSON object"),
        ("{", "Expecting"),
        ('{"depth": 3}', "field='depth': expected one of vocab_size"),
        ('{"vocab_size": 3}', "max_seq_len is missing"),
    ],
)
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        LongNetConfig.from_json(text)
