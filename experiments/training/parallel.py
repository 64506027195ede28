"""Which part of a batch a process computes: rows over data ranks, tokens over context ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from experiments import loopback
from models.patterns.orders import positions, shard

Value = TypeVar("Value")


@dataclass(frozen=True)
class Place:
    """A process among those of a training; `ALONE` is that of a single one.

    Args:
        rank: of this process, over all.
        ranks: how many there are.
        rows: of each batch that its data rank computes; None for all.
        context_rank: of this process within its row.
        context: processes that share a row.
        order: in which the tokens of a row go to these, as of `models.ring.shard`; None where
            the model takes whole rows, as it does without a group.
        group: of these, for a model over ranks; None where there is one process only.
    """

    rank: int = 0
    ranks: int = 1
    rows: slice | None = None
    context_rank: int = 0
    context: int = 1
    order: str | None = None
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """This process's tokens of whole rows (B, N), as (B, n)."""
        if self.order is None:
            return x
        return shard(x, self.context_rank, self.context, self.order)

    def positions(self, seq_len: int) -> torch.Tensor:
        """Where its tokens stand in their rows, (n,) int64 from 0."""
        if self.order is None:
            return torch.arange(seq_len)
        return positions(self.order, seq_len, self.context_rank, self.context)

    def add_up(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in its place."""
        if self.ranks > 1:
            dist.all_reduce(x)
        return x

    def add_up_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Have each gradient be its sum over all processes, by one message.

        Each process has computed other tokens with the same weights, so that this sum is the
        gradient of the sum of their losses. What got no gradient here counts as zeros.
        """
        if self.ranks == 1:
            return
        for one in parameters:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        gradients = [one.grad for one in parameters]
        together = nn.utils.parameters_to_vector(gradients)
        dist.all_reduce(together)
        # They become views of the one vector: nothing is copied back.
        nn.utils.vector_to_parameters(together, gradients)

    def by_the_first(self, function: Callable[[], Value]) -> Value:
        """What `function()` returns in the first process, in all of them.

        Raises:
            ValueError: in all of them, with the message of the OSError or ValueError that the
                first one met.
        """
        if self.ranks == 1:
            return function()
        told: list = [None, None]
        if self.is_first:
            try:
                told = [function(), None]
            except (OSError, ValueError) as error:
                told = [None, str(error)]
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise ValueError(told[1])
        return told[0]


ALONE = Place()


def launched_ranks() -> int:
    """How many processes torchrun has started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(ranks: int, context: int, batch: int, order: str | None) -> None:
    """Check that a batch can be spread over the processes, before these meet.

    Args:
        ranks: processes in all.
        context: of them, those that share a row.
        batch: rows of a step.
        order: the shard order of the variant; None where it takes whole rows.

    Raises:
        ValueError: naming what does not divide, or that the variant is none over ranks.
    """
    if context > 1 and order is None:
        raise ValueError(
            f"parallel.context={context}: expected 1, or in model.attention a variant over "
            "ranks, as ring-distributed or ring-dilated"
        )
    if ranks % context:
        raise ValueError(
            f"parallel.context={context}: expected a divisor of the number of processes, {ranks}; "
            f"start them by torchrun --nproc-per-node {context} -m experiments train ..."
        )
    if batch % (ranks // context):
        raise ValueError(
            f"data.batch={batch}: expected a multiple of the {ranks // context} processes that "
            "share it"
        )


def join(device: str) -> None:
    """Have torchrun's processes meet; nothing where there is one only. device: "cpu" or "cuda"."""
    if launched_ranks() == 1:
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        loopback.bind_ranks()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if device == "cpu" else "nccl")


def of_this_process(device: str, context: int, batch: int, order: str | None) -> Place:
    """The place of this process; those of a row are neighbours, so that they talk fast.

    Args:
        device: "cpu" or "cuda".
        context: processes that share a row.
        batch: rows of a step.
        order: the shard order of the variant; None where it takes whole rows.

    Raises:
        ValueError: as of `check`.
    """
    is_one_of_many = dist.is_available() and dist.is_initialized()
    ranks = dist.get_world_size() if is_one_of_many else 1
    check(ranks, context, batch, order)
    if not is_one_of_many:
        # Without a group a model over ranks takes whole rows, as they are read.
        return ALONE
    mesh = init_device_mesh(device, (ranks // context, context), mesh_dim_names=("data", "context"))
    data_rank, context_rank = mesh.get_coordinate()
    share = batch // (ranks // context)
    return Place(
        rank=dist.get_rank(),
        ranks=ranks,
        rows=slice(data_rank * share, (data_rank + 1) * share),
        context_rank=context_rank,
        context=context,
        order=order,
        group=None if order is None else mesh["context"].get_group(),
    )
