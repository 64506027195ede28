"""torch.compile without a graph break, torch.export, torch.func, and the ops' own checks."""

import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from models import MultiheadDilatedAttention, UnsupportedBackend, block_sparse_attention
from models import dense_attention as dense
from models import dilated_attention as dilated
from models import head_partitioned_attention as head_partitioned
from models.block_sparse_op import block_sparse as block_sparse_op
from models.dilated_op import dilated as dilated_op
from models.patterns import BlockMask
from tests.models.helpers import Problem

LISTS = ([8, 24], [1, 2])
PADDED = torch.arange(40) >= torch.tensor([[40], [29]])
IDS = (torch.arange(40) // 13).expand(2, 40)
CAUSAL = nn.Transformer.generate_square_subsequent_mask(40)
BLOCKS = BlockMask.from_dense(
    torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.6, 8
)


def module(**options):
    torch.manual_seed(0)
    return MultiheadDilatedAttention(16, 4, *LISTS, **options)


def of_module(attention, **options):
    """As a function of q, k, v (B, N, H, D) of inputs (B, N, E)."""

    def attend(q, k, v):
        inputs = (x[:, :, :4].flatten(2)[..., :16] for x in (q, k, v))
        return attention(*inputs, **options)[0]

    return attend


def encoder_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
    layer.self_attn = module()
    return lambda q, k, v: layer((q + k + v).flatten(2)[..., :16], src_mask=CAUSAL, is_causal=True)


FLOAT_MASK = torch.zeros(2, 40).masked_fill(PADDED, -torch.inf)
FUNCTIONS = {
    "dense": lambda *x: dense(*x, is_causal=True),
    "dense, LSE": lambda *x: dense(*x, is_causal=True, return_lse=True),
    "dense, eager": lambda *x: dense(*x, backend="eager", key_padding_mask=PADDED),
    "dense, math": lambda *x: dense(*x, backend="sdpa-math", key_padding_mask=PADDED),
    "dense, documents": lambda *x: dense(*x, document_ids=IDS, key_padding_mask=PADDED),
    "dilated": lambda *x: dilated(*x, *LISTS, is_causal=True, return_lse=True),
    "dilated, padding": lambda *x: dilated(*x, *LISTS, key_padding_mask=PADDED),
    "dilated, documents": lambda *x: dilated(*x, *LISTS, document_ids=IDS),
    "gather": lambda *x: dilated(*x, *LISTS, backend="gather", key_padding_mask=PADDED),
    "partition": lambda *x: head_partitioned(*x, *LISTS),
    "partition, gather": lambda *x: head_partitioned(*x, *LISTS, backend="gather"),
    "block-sparse": lambda *x: block_sparse_attention(*x, BLOCKS, is_causal=True),
    "block-sparse, LSE": lambda *x: block_sparse_attention(*x, BLOCKS, return_lse=True),
    "block-sparse, masks": lambda *x: block_sparse_attention(
        *x, BLOCKS, key_padding_mask=PADDED, document_ids=IDS
    ),
    "module": of_module(module(), key_padding_mask=PADDED),
    "module, float mask": of_module(
        module(), key_padding_mask=FLOAT_MASK, attn_mask=CAUSAL, is_causal=True
    ),
    "encoder layer": encoder_layer(),
}


def tensors(heads=4, kv_heads=4, seed=0):
    return Problem(2, 40, heads, kv_heads, 8, seed=seed).tensors(torch.float32)[:3]


def results(function, qkv):
    """Outputs and gradients of a sum that weighs every element otherwise."""
    found = function(*qkv)
    found = found if isinstance(found, tuple) else (found,)
    total = 0
    for x in found:
        finite = x.masked_fill(x.isinf(), 0)
        total = total + (finite * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum()
    return *found, *torch.autograd.grad(total, qkv)


# With every size a number: plain code of many steps, which takes tens of seconds where every
# size is a symbol; what wraps a function that is compiled with symbols by itself (a module is
# exported with them below); and one of each kind of op besides, as it is asked then for numbers.
BY_NUMBERS = (
    "gather", "partition, gather", "dense, eager", "module", "module, float mask", "encoder layer",
)  # fmt: skip
EACH_WAY = [(name, name not in BY_NUMBERS) for name in FUNCTIONS]
EACH_WAY += [(name, False) for name in ("dense", "dilated, padding", "block-sparse")]


@pytest.mark.parametrize(("name", "dynamic"), EACH_WAY)
def test_compiled_is_eager(name, dynamic):
    function, qkv = FUNCTIONS[name], tensors()
    want = results(function, qkv)
    torch.compiler.reset()
    options = {"fullgraph": True, "dynamic": dynamic, "backend": "aot_eager"}
    got = results(torch.compile(function, **options), qkv)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ("dilated", "block-sparse"))
def test_inductor_is_eager(name):
    function, qkv = FUNCTIONS[name], tensors()
    torch.compiler.reset()
    got = results(torch.compile(function, fullgraph=True), qkv)
    for a, b in zip(got, results(function, qkv), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_one_compilation_serves_every_length():
    """Lengths are symbols of the graph, masks its inputs."""
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def attend(q, k, v, padded):
        options = {"is_causal": True, "key_padding_mask": padded}
        return dense(q, k, v, **options) + dilated(q, k, v, *LISTS, **options)

    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=counted)
    for n in (40, 33, 57):
        qkv = Problem(2, n, 4, 2, 8).tensors(torch.float32)[:3]
        padded = torch.arange(n) >= torch.tensor([[n], [n - 9]])
        got, want = compiled(*qkv, padded), attend(*qkv, padded)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert counted.frame_count == 1


PLAIN = """
import sys, torch
from models import block_sparse_attention, dense_attention, dilated_attention
from models.patterns import local_window
q = torch.randn(1, 64, 2, 8, requires_grad=True)
mask = local_window(64, sparsity=0.5, block_size=16)
for out in (
    dense_attention(q, q, q, return_lse=True)[0],
    dense_attention(q, q, q),
    dilated_attention(q, q, q, [32], [2]),
    block_sparse_attention(q, q, q, mask),
):
    out.sum().backward()
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""


def test_who_compiles_nothing_loads_no_compiler():
    """It takes seconds and tens of megabytes, in each process of a measurement."""
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-2000:]


def test_a_bad_mask_stops_compiled_code_too():
    attention, x = module(), torch.randn(2, 40, 16)
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="attn_mask is not causal"):
        compiled(x, x, x, attn_mask=CAUSAL.T.contiguous(), is_causal=True)
    with pytest.raises(RuntimeError, match="a float mask may hold 0 and -inf only"):
        compiled(x, x, x, key_padding_mask=FLOAT_MASK + 1)


@pytest.mark.parametrize("strict", (False, True))
def test_export_of_a_module(strict):
    attention, x = module(), torch.randn(2, 40, 16)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=2, max=4096)}
    options = {"key_padding_mask": PADDED, "is_causal": True}
    shapes = {name: dims for name in ("query", "key", "value", "key_padding_mask")}
    exported = torch.export.export(
        attention, (x, x, x), options, dynamic_shapes=shapes | {"is_causal": None}, strict=strict
    )
    y, padded = torch.randn(3, 61, 16), torch.arange(61) >= torch.tensor([[61], [50], [7]])
    options = {"key_padding_mask": padded, "is_causal": True}
    want = attention(y, y, y, **options)[0]
    torch.testing.assert_close(exported.module()(y, y, y, **options)[0], want)


OP_OPTIONS = ([8, 24], [1, 2], "modulo", True, 0.3, "cpu-flash")


@pytest.mark.parametrize("masks", ((None, None), (PADDED, IDS)))
def test_opcheck(masks):
    qkv = tensors(kv_heads=2)
    torch.library.opcheck(dilated_op.forward, (*qkv, *masks, *OP_OPTIONS))
    out, lse = (x.detach() for x in dilated_op(*qkv, *masks, *OP_OPTIONS))
    saved = (*(x.detach() for x in qkv), out, lse)
    for grad_lse in (None, torch.ones_like(lse)):
        arguments = (torch.ones_like(out), grad_lse, *saved, *masks, *OP_OPTIONS)
        torch.library.opcheck(dilated_op.backward, arguments)


@pytest.mark.parametrize(("masks", "with_lse"), (((None, None), False), ((PADDED, IDS), True)))
def test_opcheck_of_block_sparse_attention(masks, with_lse):
    qkv, lists = tensors(kv_heads=2), (BLOCKS.row_ptr, BLOCKS.col_idx, 8)
    rest = (*masks, *lists, True, 0.3, "sdpa", with_lse)
    torch.library.opcheck(block_sparse_op.forward, (*qkv, *rest))
    out, lse = (x.detach() for x in block_sparse_op(*qkv, *rest))
    saved = (*(x.detach() for x in qkv), out, lse)
    for grad_lse in (None, *([torch.ones_like(lse)] if with_lse else [])):
        torch.library.opcheck(
            block_sparse_op.backward, (torch.ones_like(out), grad_lse, *saved, *rest)
        )


FUNCTIONAL = (
    "dense, LSE",
    "dilated, padding",
    "dilated, documents",
    "gather",
    "block-sparse, masks",
)


def scalar(function):
    def loss(*qkv):
        found = function(*qkv)
        return (found[0] if isinstance(found, tuple) else found).square().sum()

    return loss


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_torch_func_grad_and_vmap(name):
    """Each of three batches by itself, in one call; gradients of each too."""
    loss = scalar(FUNCTIONS[name])
    many = [[x.detach() for x in tensors(seed=seed)] for seed in range(3)]
    q, k, v = (torch.stack(x, dim=1) for x in zip(*many, strict=True))
    shared = many[0][1]
    want = [loss(*qkv) for qkv in many]
    torch.testing.assert_close(torch.func.vmap(loss, in_dims=1)(q, k, v), torch.stack(want))
    got = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(1, None, 1))(q, shared, v)
    for place, (own_q, _, own_v) in enumerate(many):
        inputs = (own_q.requires_grad_(), shared.clone().requires_grad_(), own_v)
        wanted = torch.autograd.grad(loss(*inputs), inputs[:2])
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a[place], b, rtol=1e-4, atol=1e-5)


def test_forward_mode_where_the_backend_can():
    q, k, v = (x.detach().double() for x in tensors())
    tangents = tuple(torch.randn_like(x) for x in (q, k, v))
    for function in (FUNCTIONS["gather"], FUNCTIONS["dense, eager"]):
        got = torch.func.jvp(function, (q, k, v), tangents)[1]
        step = 1e-6
        ahead = function(*(x + step * t for x, t in zip((q, k, v), tangents, strict=True)))
        behind = function(*(x - step * t for x, t in zip((q, k, v), tangents, strict=True)))
        torch.testing.assert_close(got, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ("dense, LSE", "dilated", "block-sparse"))
def test_what_a_backend_cannot_differentiate_is_refused_by_name(name):
    loss = scalar(FUNCTIONS[name])
    qkv = tensors()
    plain = tuple(x.detach() for x in qkv)
    with pytest.raises(UnsupportedBackend, match="no forward-mode derivative"):
        torch.func.jvp(loss, plain, plain)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(plain[0], plain[0])
        with pytest.raises(UnsupportedBackend, match="no forward-mode derivative"):
            loss(dual, *plain[1:])
    first = torch.autograd.grad(loss(*qkv), qkv, create_graph=True)
    with pytest.raises(UnsupportedBackend, match="first derivatives"):
        torch.autograd.grad(first[0].sum(), qkv)
    with pytest.raises(UnsupportedBackend, match="first derivatives"):
        torch.func.grad(lambda q: torch.func.grad(loss)(q, *plain[1:]).sum())(plain[0])


def test_second_derivatives_of_plain_code():
    q, k, v = (x.detach()[:1, :6, :1, :2].double().requires_grad_() for x in tensors())
    padded = torch.arange(6)[None] >= 4
    for attend in (
        lambda *x: dilated(*x, [2, 6], [1, 2], backend="gather", key_padding_mask=padded),
        lambda *x: dense(*x, backend="eager", is_causal=True, key_padding_mask=padded),
    ):
        assert torch.autograd.gradgradcheck(attend, (q, k, v))
