"""FlexAttention: the block lists handed to it, what it computes on the CPU, and what it refuses."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torch_flex

from models import UnsupportedBackend, dense_attention, flex
from models.oracle import reference, reference_gradients
from models.patterns import BlockMask
from tests.models.helpers import Problem, relative_rms

# Relative rms on the CPU: its exponential is a polynomial in float32.
TOLERANCE = {torch.float32: 6e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@st.composite
def masks(draw):
    """A mask, a length that it covers, and whether to cut it at the diagonal."""
    heads, blocks, size = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    bits = draw(st.lists(st.booleans(), min_size=heads * blocks**2, max_size=heads * blocks**2))
    dense = torch.tensor(bits).view(heads, blocks, blocks)
    seq_len = blocks * size - draw(st.integers(0, size - 1))
    return BlockMask.from_dense(dense, size), seq_len, draw(st.booleans())


def kept_tokens(mask, seq_len, is_causal):
    """(G, N, N) bool by the definition of a block mask."""
    block = torch.arange(seq_len) // mask.block_size
    kept = mask.to_dense()[:, block][:, :, block]
    return kept.tril() if is_causal else kept


def listed(counts, blocks):
    """(G, M, M) bool of padded lists, read as a kernel does."""
    dense = torch.zeros(*counts.shape[1:], counts.shape[-1], dtype=torch.bool)
    for head, row in torch.cartesian_prod(*map(torch.arange, counts.shape[1:])).tolist():
        row_blocks = blocks[0, head, row, : counts[0, head, row]].tolist()
        assert row_blocks == sorted(set(row_blocks))
        dense[head, row, row_blocks] = True
    return dense


@given(masks())
def test_lists_say_what_the_mask_says_in_both_directions_and_are_no_square(drawn):
    mask, seq_len, is_causal = drawn
    by_query, by_key = mask.padded_lists(seq_len, is_causal)
    full = listed(by_query.full_counts, by_query.full_blocks)
    partial = listed(by_query.partial_counts, by_query.partial_blocks)
    assert torch.equal(full, listed(by_key.full_counts, by_key.full_blocks).mT)
    assert torch.equal(partial, listed(by_key.partial_counts, by_key.partial_blocks).mT)
    # Whole blocks want no look at tokens; partial ones are cut at the diagonal and at the end.
    keys = torch.arange(mask.blocks * mask.block_size)
    block = keys // mask.block_size
    cut = (keys <= keys[:, None]) | torch.tensor(not is_causal)
    tokens = full[:, block][:, :, block] | (partial[:, block][:, :, block] & cut)
    assert torch.equal(tokens[:, :seq_len, :seq_len], kept_tokens(mask, seq_len, is_causal))
    assert not tokens[:, :, seq_len:][full[:, block][:, :, block][:, :, seq_len:]].any()
    # One width for both, by the longest row and not the square.
    for lists in (by_query, by_key):
        assert all(x.dtype == torch.int32 for x in lists)
        assert lists.full_blocks.stride() == lists.partial_blocks.stride()
        assert lists.full_blocks.shape == lists.partial_blocks.shape
    longest = int((mask.causal() if is_causal else mask).lengths().max())
    assert by_query.full_blocks.shape[3] <= max(1, 2 * longest - 1)


@given(masks())
@settings(max_examples=30)
def test_block_mask_is_what_pytorch_makes_of_the_same_blocks(drawn):
    mask, seq_len, is_causal = drawn
    ours = mask.to_flex(seq_len, is_causal)
    theirs = torch_flex.BlockMask.from_kv_blocks(
        ours.kv_num_blocks,
        ours.kv_indices.clone(),
        ours.full_kv_num_blocks,
        ours.full_kv_indices.clone(),
        BLOCK_SIZE=mask.block_size,
        seq_lengths=(seq_len, seq_len),
    )
    assert ours.shape == theirs.shape and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    kept = mask.causal() if is_causal else mask
    assert torch.equal(ours.to_dense()[0].bool(), kept.to_dense())
    for name in ("q", "full_q"):
        counts = getattr(ours, f"{name}_num_blocks")
        assert torch.equal(counts, getattr(theirs, f"{name}_num_blocks"))
        lists = (getattr(x, f"{name}_indices") for x in (ours, theirs))
        assert torch.equal(*(listed(counts, blocks) for blocks in lists))
    assert ours.sparsity() == pytest.approx(theirs.sparsity())
    assert mask.to_flex(seq_len, is_causal) is ours


def test_a_long_mask_takes_memory_by_its_rows():
    blocks, window = 4096, 3
    row = torch.arange(blocks)
    first = (row - window + 1).clamp(min=0)
    lengths = row - first + 1
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])[None]
    col_idx = torch.cat([torch.arange(a, b + 1) for a, b in zip(first, row, strict=True)])
    mask = BlockMask(row_ptr, col_idx.to(torch.int32), 64)
    made = mask.to_flex(64 * blocks - 5, is_causal=True)
    names = ("kv_indices", "full_kv_indices", "q_indices", "full_q_indices")
    for x in (getattr(made, name) for name in names):
        assert x.shape == (1, 1, blocks, blocks)
        assert x.untyped_storage().nbytes() == 4 * ((blocks - 1) * 2 + blocks)


def test_a_mask_of_another_length_is_named():
    mask = BlockMask.from_dense(torch.ones(1, 4, 4, dtype=torch.bool), 8)
    with pytest.raises(ValueError, match="expected 5 blocks for 33 tokens"):
        mask.to_flex(33)


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("n", (1, 128, 300, 128 * 1024 + 128, 128 * 2048, 128 * 1025 + 1))
def test_blocks_of_dense_attention(n, is_causal):
    mask = flex._dense_mask(n, is_causal, torch.device("cpu"))
    size, _ = mask.BLOCK_SIZE
    assert n % 128 or n % size == 0
    assert mask.kv_indices.shape[-1] <= 1025
    blocks = -(-n // size)
    total = mask.kv_num_blocks + mask.full_kv_num_blocks
    rows = torch.arange(1, blocks + 1) if is_causal else torch.full((blocks,), blocks)
    assert torch.equal(total[0, 0], rows.to(torch.int32))
    # Looked at token by token: the diagonal, and a last block that is not full.
    cut = torch.full((blocks,), int(is_causal or n % size != 0), dtype=torch.int32)
    assert torch.equal(mask.kv_num_blocks[0, 0], cut)
    first = mask.kv_indices[0, 0, :, 0]
    if is_causal:
        assert torch.equal(first, torch.arange(blocks, dtype=torch.int32))
    elif n % size:
        assert (first == blocks - 1).all()


def sparse_mask(heads, blocks, block_size, generator):
    """A random mask in which the second query block and the first key block are left out."""
    dense = torch.rand(heads, blocks, blocks, generator=generator) < 0.5
    dense[:, 1] = dense[:, :, 0] = False
    return BlockMask.from_dense(dense, block_size)


def check(out, q, k, v, **options):
    want, lse = reference(q, k, v, **options)
    assert out.dtype == q.dtype and out.shape == q.shape
    assert relative_rms(out, want) <= TOLERANCE[q.dtype]
    without_keys = lse.isneginf().transpose(1, 2)
    assert not out[without_keys].any()
    return int(without_keys.sum())


@torch.no_grad()
def test_block_sparse_on_the_cpu_and_no_more_kernels_than_allowed(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for heads, block_size, dtype, is_causal in (
        (1, 32, torch.float32, True),
        (6, 48, torch.bfloat16, False),
    ):
        mask = sparse_mask(heads, 6, block_size, generator)
        n = 6 * block_size - 7
        q, k, v, *_ = Problem(2, n, 6, 2, 16).tensors(dtype)
        options = {"pattern": mask, "is_causal": is_causal, "scale": 0.3}
        out, lse = flex.block_sparse(q, k, v, mask, is_causal, 0.3, False)
        assert lse is None
        assert check(out, q, k, v, **options) >= 2 * 6 * block_size
    monkeypatch.setattr(flex, "_KERNELS_PER_PROCESS", 1)
    q, k, v, *_ = Problem(1, 40, 2, 2, 16).tensors(torch.float32)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        flex.dense(q, k, v, True, 0.25, False)


@pytest.mark.parametrize(
    "dtype, is_causal", ((torch.float32, True), (torch.float16, False)), ids=str
)
@torch.no_grad()
def test_dense_on_the_cpu(dtype, is_causal):
    q, k, v, *_ = Problem(2, 300, 4, 2, 8, layout="fused").tensors(dtype)
    out = dense_attention(q, k, v, is_causal=is_causal, backend="flex", scale=0.4)
    assert check(out, q, k, v, is_causal=is_causal, scale=0.4) == 0


def test_lse_is_the_natural_logarithm_and_has_a_gradient(monkeypatch):
    """By the same call uncompiled, as no compiled one gives an LSE or gradients here."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex.flex_attention)
    monkeypatch.setattr(flex, "why_not", lambda q, **_: None)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    q, k, v, grad_out, grad_lse = Problem(2, 20, 4, 2, 8).tensors(torch.float32)
    options = {"is_causal": True, "scale": 0.4}
    out, lse = flex.dense(q, k, v, True, 0.4, True)
    want, want_lse = reference(q, k, v, **options)
    assert relative_rms(out, want) < 1e-6 and relative_rms(lse, want_lse) < 1e-6
    got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms(got, want) < 2e-6


Q = torch.zeros(1, 8, 2, 16)
NOT_ON_CPU = {
    "has no backward pass on the CPU": {"q": Q.clone().requires_grad_()},
    "gives no LSE on the CPU": {"return_lse": True},
    "takes float32, float16 and bfloat16, not torch.float64": {"q": Q.double()},
    "does not run on meta": {"q": Q.to("meta")},
}


@pytest.mark.parametrize("reason", NOT_ON_CPU)
def test_what_it_cannot_do_says_so(reason):
    arguments = {"q": Q} | NOT_ON_CPU[reason]
    q = arguments.pop("q")
    with pytest.raises(UnsupportedBackend, match=f"^flex: {reason}"):
        dense_attention(q, q, q, backend="flex", **arguments)
    if q.device.type == "cpu":
        mask = BlockMask.from_dense(torch.ones(1, 1, 1, dtype=torch.bool), 8)
        with pytest.raises(UnsupportedBackend, match=f"^flex: {reason}"):
            flex.block_sparse(q, q, q, mask, False, 1.0, arguments.get("return_lse", False))


def test_gradients_of_values_alone_are_refused_too():
    with pytest.raises(UnsupportedBackend, match="no backward pass"):
        dense_attention(Q, Q, Q.clone().requires_grad_(), backend="flex")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(flex.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "g++-of-another-machine")
    assert flex.why_not(Q) == "needs a C++ compiler, found no g++-of-another-machine"


def on_cuda(head_dim=64, dtype=torch.float16):
    device = SimpleNamespace(type="cuda")
    itemsize = torch.empty(0, dtype=dtype).element_size()
    return SimpleNamespace(
        device=device, dtype=dtype, shape=(1, 256, 2, head_dim), element_size=lambda: itemsize
    )


def test_rules_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert flex.why_not(on_cuda(), return_lse=True) is None
    assert all(flex.why_not(on_cuda(), size) is None for size in (16, 32, 64, 128))
    assert flex.why_not(on_cuda(), 96) == "block_size=96: takes 16, 32, 64, 128 on CUDA"
    assert "head_dim=8: " in flex.why_not(on_cuda(8))
    assert "head_dim=512: " in flex.why_not(on_cuda(512))
    assert "not torch.float64" in flex.why_not(on_cuda(dtype=torch.float64))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert flex.why_not(on_cuda()) == "needs compute capability 8.0 or later"


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("head_dim", (16, 64, 72, 128, 256))
@pytest.mark.parametrize("block_size", (16, 32, 64, 128))
def test_tiles_divide_the_block(block_size, head_dim, dtype):
    tiles = flex._tiles(on_cuda(head_dim, dtype), block_size)
    assert (tiles == {}) == (block_size == 128)
    sides = [side for name, side in tiles.items() if "BLOCK" in name]
    assert all(side >= 16 and block_size % side == 0 for side in sides)
    # What the backward kernel asserts of its tiles.
    assert tiles.get("bwd_BLOCK_N1", 0) % tiles.get("bwd_BLOCK_M1", 1) == 0
    assert tiles.get("bwd_BLOCK_M2", 0) % tiles.get("bwd_BLOCK_N2", 1) == 0


def test_pytorch_takes_a_default_tile_that_divides_every_block():
    from torch._functorch import config
    from torch._inductor.virtualized import V

    before = V.choices
    with ExitStack() as stack:
        flex._use_backward_tiles(stack)
        (tile,) = V.choices.get_flex_attention_bwd_configs(64, torch.bfloat16, "cuda")
        assert {tile.block_m1, tile.block_n1, tile.block_m2, tile.block_n2} == {16}
        assert config.force_non_lazy_backward_lowering
    assert V.choices is before and not config.force_non_lazy_backward_lowering


@torch.no_grad()
def test_blocks_that_the_cpu_kernel_gets_wrong_are_refused():
    """PyTorch's is off by half for blocks of 24 where the CPU has AVX2 and no more."""
    mask = sparse_mask(1, 6, 24, torch.Generator().manual_seed(0))
    q, k, v, *_ = Problem(1, 137, 2, 2, 16).tensors(torch.float32)
    with pytest.raises(UnsupportedBackend, match="block_size=24: takes multiples of 16 on the CPU"):
        flex.block_sparse(q, k, v, mask, False, 0.3, False)
