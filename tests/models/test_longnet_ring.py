"""A LongNet model over ranks is that of one process: outputs, gradients, refusals."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from models import LongNetEncoder, LongNetLM
from models.ring import shard, unshard
from tests.models.longnet_models import model, tokens

# Over ranks, and the same on one device.
SAME = {
    "ring-standard": "dense",
    "ring-distributed": "dense",
    "ring-striped": "dense",
    "ring-hilbert": "dense",
    "ring-dilated": "dilated-sdpa",
    "distributed-dilated": "dilated-sdpa",
    "ring-block-sparse": "block-sparse",
}


def made(kind, attention, group=None):
    pattern = "strided" if "block" in attention else None
    return model(
        attention, pattern, kind, group=group, dtype=torch.float64, checkpoint_activations=True
    )


def padding(padded):
    mask = torch.zeros(2, 45, dtype=torch.bool)
    mask[1, :9] = True
    return mask if padded else None


def trained(network, ids, targets, mask):
    """Output, and the gradients of a sum over tokens."""
    out = network(ids, key_padding_mask=mask)
    F.cross_entropy(
        out.flatten(0, 1), targets.flatten() % out.shape[-1], reduction="sum"
    ).backward()
    return out.detach(), [p.grad for p in network.parameters()]


def train_on_rank(kind, attention, padded):
    rank, size = dist.get_rank(), dist.get_world_size()
    network = made(kind, attention, dist.group.WORLD)
    order = network.variant.order
    parts = [tokens(), tokens(seed=2), padding(padded)]
    parts = (None if x is None else shard(x, rank, size, order) for x in parts)
    out, grads = trained(network, *parts)
    for grad in grads:
        dist.all_reduce(grad)
    return out, grads


@pytest.mark.parametrize(
    ("kind", "attention", "padded"),
    [(LongNetLM, name, name in ("ring-dilated", "ring-striped")) for name in SAME]
    + [(LongNetEncoder, "ring-dilated", True)],
)
def test_two_ranks_are_one_process(rings, kind, attention, padded):
    want, want_grads = trained(
        made(kind, SAME[attention]), tokens(), tokens(seed=2), padding(padded)
    )
    found = rings.run(2, train_on_rank, kind, attention, padded)
    out = unshard([one[0] for one in found], made(kind, attention).variant.order)
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9)
    for _, grads in found:
        for a, b in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def refused_on_rank():
    network, rank = model("ring-striped", group=dist.group.WORLD), dist.get_rank()
    messages = []
    mask = torch.zeros(2, 10, dtype=torch.bool) if rank else None
    for run in (
        lambda: network(tokens(2, 10 + 5 * rank)),
        lambda: network(tokens(2 + rank, 10)),
        lambda: network(tokens(2, 10), key_padding_mask=mask),
        lambda: network(tokens(2, 40)),
        lambda: network.generate(tokens(2, 10), 3),
        lambda: model("dense", group=dist.group.WORLD),
    ):
        with pytest.raises(ValueError) as error:
            run()
        messages.append(str(error.value))
    return messages


def test_what_ranks_cannot_do_is_told_on_each(rings):
    found = rings.run(2, refused_on_rank)
    assert found[0][:5] == found[1][:5]
    lengths, batches, padding, longest, generation, group = found[0]
    assert "the ranks have [10, 15]: expected [13, 12] of 25 in the order 'striped'" in lengths
    assert "batch sizes: the ranks have [2, 3]" in batches
    assert "key_padding_mask: the ranks have [0, 1]: expected the same" in padding
    assert longest == "80 tokens: expected at most max_seq_len=64"
    assert generation.startswith("generation over several ranks")
    assert "expected None with attention='dense', which takes the whole sequence" in group
