"""Generation: a cached step gives what the whole forward pass gives, by the pattern's keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.language.attention import VariantAttention
from models.language.cache import KeyValueCache
from models.language.cached_attention import step_attention
from models.language.generation import next_tokens
from models.language.one_query import attend_in_branches, attend_to_blocks
from models.language.schedule import schedule
from models.oracle import reference
from models.patterns import DilatedBranches
from tests.models.helpers import problems
from tests.models.longnet_models import SYSTEMS, config, model, tokens

PROMPT = 19


@pytest.mark.parametrize(("attention", "pattern"), SYSTEMS)
@pytest.mark.parametrize("padded", [False, True])
def test_cached_is_full(attention, pattern, padded):
    network, ids = model(attention, pattern), tokens()
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[1, :11] = True
    mask = mask if padded else None
    with torch.no_grad():
        want = network(ids, key_padding_mask=mask)
    last, cache = network.prefill(
        ids[:, :PROMPT], key_padding_mask=None if mask is None else mask[:, :PROMPT]
    )
    torch.testing.assert_close(last, want[:, PROMPT - 1], rtol=0, atol=1e-5)
    for n in range(PROMPT, ids.shape[1]):
        got = network.step(ids[:, n : n + 1], cache)
        torch.testing.assert_close(got, want[:, n], rtol=0, atol=1e-5)
        assert cache.length == n + 1
        assert cache.keys_read == keys_by_pattern(network, n)


def keys_by_pattern(network, n):
    """Keys of position n, over heads."""
    variant, heads = network.variant, network.config.heads
    if variant.branches is not None:
        return sum(len(variant.branches.keys(h, heads, n, n + 1, True)) for h in range(heads))
    if variant.block_size is None:
        return heads * (n + 1)
    block, size = n // variant.block_size, variant.block_size
    kept = max(1, round((1 - variant.sparsity) * (block + 1)))
    if variant.masks is not None:
        kept = variant.masks.row(block).shape[1]
    return heads * ((kept - 1) * size + n % size + 1)


@given(problem=problems(), share=st.floats(0, 1))
def test_a_dilated_step_is_the_oracles_last_row(problem, share):
    q, k, v, _, _ = problem.tensors(torch.float64)
    q, k, v = (x.detach() for x in (q, k, v))
    n = problem.n - 1
    # Padding anywhere, of the newest token too.
    padded = torch.rand(q.shape[:2], generator=torch.Generator().manual_seed(problem.seed)) < share
    for mask in (None, padded):
        out, keys_read = attend_in_branches(q[:, -1:], k, v, mask, problem.pattern)
        rows = torch.tensor([n])
        options = {"rows": rows, "pattern": problem.pattern, "is_causal": True}
        want, _ = reference(q, k, v, key_padding_mask=mask, **options)
        torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9)
    heads = range(problem.heads)
    of_pattern = [problem.pattern.keys(h, problem.heads, n, problem.n, True) for h in heads]
    assert keys_read == sum(map(len, of_pattern))


@pytest.mark.parametrize("heads", [4, 16])
@pytest.mark.parametrize("n", [65535, 65520, 49152])
def test_a_step_at_64k_reads_the_patterns_keys_and_no_other(n, heads):
    lists = schedule(65536)
    assert lists == ((2048, 4096, 8192, 16384, 32768, 65536), (1, 2, 4, 6, 12, 24))
    made = config(
        max_seq_len=65536, layers=1, heads=heads, kv_heads=heads, embed_dim=8 * heads,
        segment_lengths=None, dilation_rates=None,
    )  # fmt: skip
    attention = VariantAttention(made, True, None)
    pattern = attention.branches
    assert pattern == DilatedBranches(*lists)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n + 1, heads, 8, generator=generator) for _ in range(3))
    of_heads = [pattern.keys(h, heads, n, n + 1, True) for h in range(heads)]
    held_k, held_v = torch.full_like(k, torch.nan), torch.full_like(v, torch.nan)
    for head, keys in enumerate(of_heads):
        held_k[:, keys, head], held_v[:, keys, head] = k[:, keys, head], v[:, keys, head]
    cache = KeyValueCache(1, 65536)
    cache.write(0, held_k[:, :n], held_v[:, :n])
    cache.advance(n)
    newest = (x[:, n:] for x in (q, k, v))
    out = step_attention(attention, cache, 0)(*newest)
    rows = torch.tensor([n])
    want, _ = reference(q, k, v, rows=rows, pattern=pattern, is_causal=True)
    torch.testing.assert_close(out, want.float(), rtol=0, atol=1e-5)
    assert cache.keys_read == sum(map(len, of_heads))
    # A small part of what a dense step reads.
    assert cache.keys_read < 0.25 * heads * (n + 1)


@pytest.mark.parametrize("per_head", [False, True])
def test_a_block_step_reads_the_kept_blocks_and_no_other(per_head):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 46, h, 8, generator=generator) for h in (4, 2, 2))
    blocks = torch.tensor([[[0, 3, 5]]])
    if per_head:
        blocks = torch.tensor([[[0, 3, 5], [1, 2, 5], [0, 4, 5], [2, 3, 5]]])
    kept = torch.zeros(4, 6, dtype=torch.bool)
    kept.scatter_(1, blocks[0].expand(4, 3), True)
    by_token = kept.repeat_interleave(8, dim=1)[:, :46]
    of_kv = by_token.view(2, 2, 46).any(1).T[None, :, :, None]
    held = [x.masked_fill(~of_kv, torch.nan) for x in (k, v)]
    out, keys_read = attend_to_blocks(q[:, -1:], *held, None, blocks, 8)
    scores = torch.einsum("bhd,bnhd->bhn", q[:, -1], k.repeat_interleave(2, 2)) / 8**0.5
    weights = scores.masked_fill(~by_token, -torch.inf).softmax(-1)
    want = torch.einsum("bhn,bnhd->bhd", weights, v.repeat_interleave(2, 2))[:, None]
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6)
    assert keys_read == 4 * (2 * 8 + 6)


@pytest.mark.parametrize(
    ("attention", "pattern"), [("dilated-sdpa", None), ("dense", None), ("block-sparse", "top_k")]
)
def test_greedy_generation_is_that_without_a_cache(attention, pattern):
    network, ids = model(attention, pattern), tokens(2, 7)
    made = network.generate(ids, 30)
    for _ in range(30):
        ids = torch.cat([ids, network(ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, ids)


@pytest.mark.parametrize(
    ("attention", "pattern"), [("dilated-sdpa", None), ("block-sparse", "top_k")]
)
def test_cached_is_full_under_autocast_and_in_half_precision(attention, pattern):
    for half in (False, True):
        network, ids = model(attention, pattern, dtype=torch.bfloat16 if half else None), tokens()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not half):
            want = network(ids)
            _, cache = network.prefill(ids[:, :PROMPT])
            for n in range(PROMPT, 45):
                got = network.step(ids[:, n : n + 1], cache)
                torch.testing.assert_close(got, want[:, n], rtol=0, atol=0.1)


def test_a_left_padded_prompt_is_not_attended_to():
    network, ids = model(), tokens(2, 19)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, :6] = True
    made = network.generate(ids, 20, key_padding_mask=mask)
    others = network.generate(ids.masked_fill(mask, 3), 20, key_padding_mask=mask)
    assert torch.equal(made[:, 19:], others[:, 19:])
    assert torch.equal(made[:1], network.generate(ids[:1], 20, key_padding_mask=mask[:1]))


def test_memory_grows_by_doubling_up_to_the_longest():
    cache, x = KeyValueCache(1, 50), torch.arange(50.0).view(1, 50, 1, 1)
    found = []
    cache.write(0, x[:, :10], -x[:, :10])
    cache.advance(10)
    for n in range(10, 50):
        cache.write(0, x[:, n : n + 1], -x[:, n : n + 1])
        k, v, _ = cache.of(0, n + 1)
        assert torch.equal(k, x[:, : n + 1]) and torch.equal(v, -x[:, : n + 1])
        cache.advance(1)
        found.append(cache.capacity)
    assert sorted(set(found)) == [20, 40, 50]
    with pytest.raises(ValueError, match=r"50 \+ 1 tokens: expected at most max_seq_len=50"):
        cache.check_room(1)
    cache = KeyValueCache(1, 50, reserved=32)
    cache.write(0, x[:, :10], x[:, :10])
    assert cache.capacity == 32


def test_drawn_tokens_have_the_probabilities_of_the_temperature():
    logits = torch.tensor([0.25, 0.75]).log().expand(20_000, 2)
    for temperature, share in ((1.0, 0.75), (0.5, 0.9), (2.0, 0.634), (1e-6, 1.0), (0.0, 1.0)):
        generator = torch.Generator().manual_seed(0)
        drawn = next_tokens(logits, temperature, generator)
        assert drawn.shape == (20_000, 1)
        assert drawn.double().mean().item() == pytest.approx(share, abs=0.01)


def test_the_same_generator_draws_the_same():
    network, ids = model(), tokens(2, 5)
    made = [
        network.generate(ids, 12, temperature=1.5, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_bad_input_is_told_before_any_work():
    network, ids = model(), tokens(2, 60)
    _, cache = network.prefill(ids)
    network.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("work"))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -1] = True
    bad = {
        r"max_new_tokens=5: expected at most 64 - 60": {"max_new_tokens": 5},
        r"max_new_tokens=0: expected an integer >= 1": {"max_new_tokens": 0},
        r"temperature=-1: expected a number >= 0": {"temperature": -1},
        r"temperature=nan: expected a number >= 0": {"temperature": float("nan")},
        r"key_padding_mask: expected prompts padded on the left": {"key_padding_mask": mask},
        r"key_padding_mask=torch.bool \(2, 9\)": {"key_padding_mask": mask[:, :9]},
    }
    for message, options in bad.items():
        with pytest.raises(ValueError, match=message):
            network.generate(ids, **{"max_new_tokens": 4} | options)
    for wrong in (ids[:1, :1], ids[:, :2]):
        with pytest.raises(ValueError, match=r"expected \(2, 1\), one more of each sequence"):
            network.step(wrong, cache)
    with pytest.raises(ValueError, match="reserved=-1: expected an integer >= 0"):
        network.prefill(ids, reserved=-1)


@pytest.mark.parametrize(("attention", "pattern"), SYSTEMS)
def test_a_batch_of_none(attention, pattern):
    network, ids = model(attention, pattern), tokens()
    assert network.generate(ids[:0, :PROMPT], 9).shape == (0, PROMPT + 9)
    caches = [network.prefill(ids[:size, :PROMPT])[1] for size in (0, 2)]
    for size, cache in zip((0, 2), caches, strict=True):
        network.step(ids[:size, :1], cache)
    assert caches[0].keys_read == caches[1].keys_read > 0
