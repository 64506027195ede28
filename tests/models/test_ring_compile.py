"""Rings inside torch.compile, whole, and under torch.func: the values of a plain call."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend

from models.errors import UnsupportedBackend
from models.patterns import BlockMask, DilatedBranches
from models.ring import (
    Grid,
    distributed_dilated_attention,
    ring_attention,
    shard,
    simulated_ring_attention,
)
from models.ring import all_gather as by_all_gather
from models.ring import attention as of_ranks
from models.ring import op as agreement
from models.ring import simulated as of_one_process
from models.ring.op import prepared

BRANCHES = DilatedBranches((8, 40), (1, 2))
GRID = Grid("hilbert", 7)


def block_mask(n):
    generator = torch.Generator().manual_seed(3)
    blocks = -(-n // 8)
    return BlockMask.from_dense(torch.rand(1, blocks, blocks, generator=generator) < 0.6, 8)


def calls(n, **options):
    """Every function with every kind of pattern, order and option, for n tokens in all."""
    ring = partial(ring_attention, **options)
    simulated = partial(simulated_ring_attention, world_size=3)
    return {
        "dense": partial(ring, is_causal=True, return_lse=True),
        "dilated": partial(ring, pattern=BRANCHES, scale=0.3, order=GRID),
        "blocks": partial(ring, pattern=block_mask(n), backend="eager", seq_len=n),
        "gathered": partial(distributed_dilated_attention, pattern=BRANCHES, **options),
        "simulated": partial(simulated, pattern=BRANCHES, return_lse=True),
        "simulated blocks": partial(simulated, pattern=block_mask(n), order=GRID),
    }


def tensors(n, rank=0, world_size=1, order="zigzag"):
    """q, k, v that require gradients, and a padding mask: a rank's."""
    generator = torch.Generator().manual_seed(n)
    found = [torch.randn(2, n, heads, 8, generator=generator) for heads in (4, 2, 2)]
    found.append(torch.rand(2, n, generator=generator) < 0.3)
    q, k, v, mask = (shard(x, rank, world_size, order).contiguous() for x in found)
    return [x.requires_grad_() for x in (q, k, v)], mask


def results(function, inputs, mask):
    """What the function returns, and gradients of the sum of squares of what is finite."""

    found = function(*inputs, key_padding_mask=mask)
    found = found if isinstance(found, tuple) else (found,)
    loss = sum(torch.where(x.isfinite(), x, 0.0).square().sum() for x in found)
    return [*found, *torch.autograd.grad(loss, inputs)]


def check(function, dynamic, cases):
    """Compiled without a graph break it returns the bits of a plain call, for each (inputs, mask);
    when dynamic, it is compiled for the first of them only."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    made = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    counts = []
    for inputs, mask in cases:
        got, want = (results(f, inputs, mask) for f in (made, function))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        counts.append(counter.frame_count)
    assert not dynamic or counts[0] == counts[-1]


@pytest.mark.parametrize("name", calls(1))
def test_a_compiled_call_is_a_plain_one(name):
    """A block mask is of one length: its calls are compiled for it, the others for any."""
    dynamic = "blocks" not in name
    check(calls(40)[name], dynamic, [tensors(n) for n in ((40, 37) if dynamic else (40,))])


def compiled_on_rank(group, name, dynamic):
    """On a rank: `check` of one call; group: how it is given."""
    rank, size = dist.get_rank(), dist.get_world_size()
    given = dist.group.WORLD if group == "world" else dist.init_device_mesh("cpu", (size,))
    check(calls(12 * size, group=given)[name], dynamic, [tensors(12 * size, rank, size)])


@pytest.mark.parametrize(
    "group, name, dynamic", (("mesh", "dense", True), ("world", "gathered", False))
)
def test_compiled_calls_of_ranks_are_plain_ones(group, name, dynamic, rings):
    rings.run(2, compiled_on_rank, group, name, dynamic)


@pytest.mark.parametrize("pattern", (BRANCHES, block_mask(9)), ids=lambda x: type(x).__name__)
def test_the_ops_keep_to_what_they_say(pattern):
    """By PyTorch's own checks."""
    (q, k, v), mask = tensors(9)
    given = (True, None, "zigzag", pattern, "auto", mask)
    options = prepared(q, k, v, *given)[3]
    fixed = (True, True, 9, "", 0.0)
    agreed = agreement._agreement(q.detach(), k.detach(), *fixed, *options)
    torch.library.opcheck(agreement._agreement, (q.detach(), k.detach(), *fixed, *options))
    found = [(of_ranks._op, (mask, agreed, "", 0.0))]
    if pattern is BRANCHES:
        found = [(by_all_gather._op, (mask, agreed, "", 0.0)), (of_one_process._op, (mask, 3))]
    for op, rest in found:
        torch.library.opcheck(op.forward, (q, k, v, *rest, *options))
        out, lse = op.forward(q, k, v, *rest, *options)
        kept = [x.detach() for x in (torch.ones_like(out), torch.ones_like(lse), q, k, v, out, lse)]
        torch.library.opcheck(op.backward, (*kept, *rest, *options))


@pytest.mark.parametrize("name", ("dense", "gathered", "simulated"))
def test_it_can_be_mapped_and_differentiated_by_torch_func(name):
    function = calls(12)[name]
    q, k, v = (torch.randn(3, 2, 12, heads, 8) for heads in (4, 2, 2))

    def out(q, k, v):
        found = function(q, k, v)
        return found[0] if isinstance(found, tuple) else found

    mapped = torch.vmap(out, in_dims=(0, None, None))(q, k[0], v[0])
    got = torch.func.grad(lambda x: out(q[0], x, v[0]).square().sum())(k[0])
    x = k[0].clone().requires_grad_()
    (want,) = torch.autograd.grad(out(q[0], x, v[0]).square().sum(), x)
    torch.testing.assert_close(mapped[1], out(q[1], k[0], v[0]))
    torch.testing.assert_close(got, want)
    with pytest.raises(UnsupportedBackend, match="forward-mode"):
        torch.func.jvp(lambda x: out(x, k[0], v[0]), (q[0],), (q[0],))


@pytest.mark.parametrize("name", ("dense", "gathered", "simulated"))
def test_a_second_derivative_is_refused(name):
    (q, k, v), mask = tensors(12)
    found = calls(12)[name](q, k, v)
    out = found[0] if isinstance(found, tuple) else found
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(UnsupportedBackend, match="first derivatives"):
        torch.autograd.grad(dq.sum(), q)
