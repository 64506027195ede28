"""What training is done with: checkpointing, saved tensors elsewhere, DDP and FSDP2."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from models import (
    MultiheadDilatedAttention,
    block_sparse_attention,
    dense_attention,
    dilated_attention,
    ring_attention,
)
from models.patterns import BlockMask, DilatedBranches
from tests.models.helpers import Problem

LISTS = ([8, 24], [1, 3])
PADDED = torch.arange(40) >= torch.tensor([[40], [29]])
BLOCKS = BlockMask.from_dense(torch.ones(1, 5, 5).tril().bool(), 8)
SYSTEMS = {
    "dense": lambda *x: dense_attention(*x, is_causal=True, return_lse=True),
    "dense eager": lambda *x: dense_attention(*x, backend="eager", return_lse=True),
    "dilated": lambda *x: dilated_attention(*x, *LISTS, return_lse=True),
    "dilated, padding": lambda *x: dilated_attention(
        *x, *LISTS, return_lse=True, key_padding_mask=PADDED
    ),
    "gather": lambda *x: dilated_attention(*x, *LISTS, backend="gather", return_lse=True),
    "block-sparse": lambda *x: block_sparse_attention(*x, BLOCKS, return_lse=True),
    "ring": lambda *x: ring_attention(*x, pattern=DilatedBranches(*LISTS), return_lse=True),
}


def gradients(attend, qkv):
    out, lse = attend(*qkv)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return torch.autograd.grad((out * weights).sum() + lse.sum(), qkv)


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_by_other_ways_of_keeping_tensors(name):
    attend, qkv = SYSTEMS[name], Problem(2, 40, 4, 2, 8).tensors(torch.float64)[:3]
    want = gradients(attend, qkv)
    found = []
    for reentrant in (False, True):
        again = lambda *x, reentrant=reentrant: checkpoint(attend, *x, use_reentrant=reentrant)  # noqa: E731
        if reentrant:
            leaves = [x.detach().clone().requires_grad_() for x in qkv]
            out, lse = again(*leaves)
            weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
            ((out * weights).sum() + lse.sum()).backward()
            found.append([x.grad for x in leaves])
        else:
            found.append(gradients(again, qkv))
    with torch.autograd.graph.save_on_cpu():
        found.append(gradients(attend, qkv))
    for got in found:
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def model():
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True) for _ in range(2)]
    for layer in layers:
        layer.self_attn = MultiheadDilatedAttention(16, 4, *LISTS)
    return nn.Sequential(*layers).double()


def steps(network, batches):
    """Three steps of SGD; the losses, as they show every gradient's value."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = network(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 40, 16, dtype=torch.float64, generator=generator)


def train_on_rank(kind):
    network, rank, size = model(), dist.get_rank(), dist.get_world_size()
    if kind == "ddp":
        network = nn.parallel.DistributedDataParallel(network)
    else:
        mesh = init_device_mesh("cpu", (size,))
        for layer in network:
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
    losses = steps(network, data().chunk(size, dim=1)[rank])
    dist.all_reduce(losses)
    return losses / size


@pytest.mark.parametrize("kind", ("ddp", "fsdp2"))
def test_over_data_parallel_ranks_it_trains_as_on_one(rings, kind):
    want = steps(model(), data())
    for losses in rings.run(2, train_on_rank, kind):
        torch.testing.assert_close(losses, want, rtol=1e-9, atol=0)
    assert want[0] > want[1] > want[2]
