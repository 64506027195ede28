"""The multi-head module over ranks: a training step is that of one rank."""

import pytest
import torch
import torch.distributed as dist

from models import MultiheadDilatedAttention
from models.ring import shard, unshard

SEQ_LEN, EMBED = 45, 32


def module(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return MultiheadDilatedAttention(
        EMBED, 4, (8, 16, 64), (1, 2, 4), num_kv_heads=2, dtype=dtype, **options
    )


def data(padded):
    generator = torch.Generator().manual_seed(1)
    x, target = (
        torch.randn(2, SEQ_LEN, EMBED, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    mask = torch.zeros(2, SEQ_LEN, dtype=torch.bool)
    mask[1, 30:] = True
    return x, target, mask if padded else None


def train(layer, x, target, mask, is_causal, sync):
    """Two steps of SGD on the summed squared error; returns losses, outputs and parameters."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for _ in range(2):
        out, _ = layer(x, x, x, key_padding_mask=mask, is_causal=is_causal)
        loss = (out - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        if sync:
            for tensor in (loss, *(p.grad for p in layer.parameters())):
                dist.all_reduce(tensor)
        optimizer.step()
        losses.append(loss.item())
    return losses, out.detach(), [p.detach() for p in layer.parameters()]


def train_on_rank(order, padded, is_causal):
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = (None if x is None else shard(x, rank, size, order) for x in data(padded))
    layer = module(group=dist.group.WORLD, order=order)
    return train(layer, *parts, is_causal, sync=True)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_training_step_is_that_of_one_rank(rings, world_size, order, padded, is_causal):
    losses, out, parameters = train(module(), *data(padded), is_causal, sync=False)
    of_ranks = rings.run(world_size, train_on_rank, order, padded, is_causal)
    torch.testing.assert_close(unshard([x[1] for x in of_ranks], order), out)
    for rank_losses, _, rank_parameters in of_ranks:
        assert rank_losses == pytest.approx(losses, rel=1e-12)
        for got, want in zip(rank_parameters, parameters, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"order='spiral': expected one of contiguous"):
        module(order="spiral")
