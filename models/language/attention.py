"""The attention of a language model's layers: a variant of the registry, called one way."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from models.language.block_masks import BlockMasks
from models.language.chosen_blocks import chosen_attention
from models.language.config import LongNetConfig
from models.patterns.orders import positions
from models.ring.options import group_name, process_group

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class VariantAttention:
    """A configuration's variant with its options and pattern.

    A process group is kept by its name, so that a model can be copied and pickled.

    Args:
        config: of the model.
        is_causal: whether a token attends to tokens up to itself only.
        group: over whose ranks the sequence is sharded, of a variant with a `shard_order`; None
            for the default group, or where there is none for this process alone.

    Raises:
        ValueError: for a group with another variant.
    """

    def __init__(
        self,
        config: LongNetConfig,
        is_causal: bool,
        group: dist.ProcessGroup | DeviceMesh | None,
    ):
        variant = config.variant
        if group is not None and variant.shard_order is None:
            raise ValueError(
                f"group={group!r}: expected None with attention={config.attention!r}, which takes "
                "the whole sequence"
            )
        self.name, self.order, self.is_causal = config.attention, variant.shard_order, is_causal
        self.group_name = group_name(group)
        module, _, entry = variant.entry.partition(":")
        self._entry = getattr(importlib.import_module(module), entry)
        self._options = {"is_causal": is_causal, **variant.options}
        self.branches = config.branches if variant.takes == "branches" else None
        self.block_size, self.sparsity = config.block_size, config.sparsity
        self.chooses_blocks = config.pattern == "top_k"
        is_built = variant.takes == "blocks" and not self.chooses_blocks
        self.masks = BlockMasks(config, is_causal) if is_built else None
        if self.branches is not None and self.order is None:
            lists = (self.branches.segment_lengths, self.branches.dilation_rates)
            names = ("segment_lengths", "dilation_rates")
            self._options |= dict(zip(names, lists, strict=True))
            if variant.pattern_class == "DilatedBranches":
                self._options["head_offset"] = self.branches.head_offset

    def places(
        self, tokens: torch.Tensor, key_padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, int]:
        """Where this process's tokens are in the whole sequence; over ranks, a collective call.

        Args:
            tokens: (B, n), this rank's.
            key_padding_mask: (B, n) bool, or None.

        Returns:
            positions (n,) int64 on their device, and the length of the whole sequence.

        Raises:
            ValueError: where the ranks' numbers of tokens are not those of the variant's order,
                their batches differ, or some have padding masks and some none; on every rank.
        """
        n = tokens.shape[1]
        group = None if self.order is None else process_group(self.group_name)
        if group is None:
            return torch.arange(n, device=tokens.device), n
        rank, ranks = dist.get_rank(group), group.size()
        own = [n, tokens.shape[0], int(key_padding_mask is not None)]
        found = [own]
        if ranks > 1:
            sent = torch.tensor(own, device=tokens.device)
            received = [torch.empty_like(sent) for _ in range(ranks)]
            dist.all_gather(received, sent, group=group)
            found = [one.tolist() for one in received]
        lengths, batches, padded = ([one[i] for one in found] for i in range(3))
        for name, values in (("tokens: batch sizes", batches), ("key_padding_mask", padded)):
            if len(set(values)) > 1:
                raise ValueError(f"{name}: the ranks have {values}: expected the same on each")
        seq_len = sum(lengths)
        held = [positions(self.order, seq_len, one, ranks) for one in range(ranks)]
        if lengths != [len(one) for one in held]:
            raise ValueError(
                f"tokens: the ranks have {lengths}: expected {[len(one) for one in held]} of "
                f"{seq_len} in the order {self.order!r}, as `models.ring.shard` cuts it"
            )
        return held[rank].to(tokens.device), seq_len

    @property
    def is_sharded(self) -> bool:
        """Whether the sequence is over several ranks."""
        if self.order is None:
            return False
        group = process_group(self.group_name)
        return group is not None and group.size() > 1

    def check_documents(self, document_ids: torch.Tensor | None) -> None:
        """Check that documents can be given.

        Args:
            document_ids: (B, N), or None.

        Raises:
            ValueError: where the variant takes none.
        """
        if document_ids is None:
            return
        if self.order is not None:
            raise ValueError(
                f"document_ids: expected None with attention={self.name!r}, whose ranks take none"
            )
        if self.chooses_blocks:
            raise ValueError(
                "document_ids: expected None with pattern='top_k', where other documents would "
                "take part in the choice of blocks"
            )

    def over(
        self,
        seq_len: int,
        device: torch.device,
        key_padding_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        *,
        in_order: bool = False,
    ) -> Attend:
        """The attention of one forward pass.

        Args:
            seq_len: tokens of the whole sequence.
            device: of the tokens.
            key_padding_mask: (B, n) bool, this rank's, or None.
            document_ids: (B, N), or None.
            in_order: whether the one rank of a group takes the tokens as they follow each other,
                and not in the variant's order; without a group they always do.

        Returns:
            (q (B, n, H, D), k, v (B, n, Hkv, D)) -> (B, n, H, D).
        """
        options = self._options | {"key_padding_mask": key_padding_mask}
        if self.chooses_blocks:
            options |= {"sparsity": self.sparsity, "block_size": self.block_size}
            options |= {"attend": self._entry}
            return partial(chosen_attention, **options)
        if self.order is not None:
            pattern = self.branches if self.masks is None else self.masks.of(seq_len, device)
            group = process_group(self.group_name)
            options |= {"pattern": pattern, "group": group}
            # Given, so that the ranks do not compare their arguments in every layer: see `places`.
            options |= {"seq_len": seq_len}
            if in_order or group is None:
                options["order"] = "contiguous"
            return partial(self._entry, **options)
        options |= {"document_ids": document_ids}
        if self.masks is not None:
            mask = self.masks.of(seq_len, device)
            return lambda q, k, v: self._entry(q, k, v, mask, **options)
        return partial(self._entry, **options)
