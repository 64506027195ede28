"""A case turned into tensors and a function: what is timed, and how its rows are recomputed.

Every variant is `finish(attend(project(inputs)))`; for the functional ones
`project` and `finish` do nothing. The check recomputes sampled rows by putting
the oracle's attention in place of the variant's.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from experiments.case import PATTERN_FIELDS, Case
from experiments.rank_of_module import RankOfModule
from models import patterns
from models.errors import UnsupportedBackend
from models.oracle import attend_rows
from models.patterns.orders import shard
from models.registry import SIMULATION, VARIANTS, Variant

# FLOPs of a backward pass over those of its forward: 5 products against 2 in attention
# with recomputed scores (FlashAttention's convention), 2 against 1 in a projection.
BACKWARD_OVER_FORWARD = {"attention": 2.5, "projection": 2.0}
# Fields of a case that its tensors, and dense attention over them, follow from.
_OF_INPUTS = (
    "batch",
    "seq_len",
    "heads",
    "kv_heads",
    "head_dim",
    "dtype",
    "is_causal",
    "pass",
    "seed",
)


@dataclass
class Workload:
    """Tensors on the device and the function over them.

    run(*inputs) gives the output, (B, N, H, D) or (B, N, E) for a module. `pattern`
    says who attends to whom, to the variant and to the oracle: None for dense.
    `cotangent` is the output's, for the backward pass. Over ranks, `build` gives whole
    sequences, and `on_rank` what a rank works on.
    """

    case: Case
    variant: Variant
    inputs: list[torch.Tensor]
    run: Callable[..., torch.Tensor]
    pattern: object | None
    cotangent: torch.Tensor | None
    module: torch.nn.Module | None

    @property
    def leaves(self) -> list[torch.Tensor]:
        """What gradients are taken of: the inputs and a module's parameters."""
        return self.inputs + (list(self.module.parameters()) if self.module else [])

    def step(self) -> torch.Tensor:
        """One pass as timed; returns the output."""
        if self.case.pass_ == "forward":
            with torch.no_grad():
                return self.run(*self.inputs)
        out = self.run(*self.inputs)
        torch.autograd.grad(out, self.leaves, self.cotangent)
        return out.detach()

    def limited_to(self, rows: torch.Tensor) -> Workload:
        """The same with a cotangent that is zero outside `rows`, if there is one."""
        if self.cotangent is None:
            return self
        cotangent = torch.zeros_like(self.cotangent)
        cotangent[:, rows] = self.cotangent[:, rows]
        return replace(self, cotangent=cotangent)

    def gradients(self) -> list[torch.Tensor]:
        """The variant's gradients of `leaves`; none on the forward pass."""
        if self.cotangent is None:
            return []
        return list(torch.autograd.grad(self.run(*self.inputs), self.leaves, self.cotangent))

    def identity(self, *, dense: bool = False) -> dict:
        """What oracle rows follow from, as JSON: inputs, mask and pass, a module's weights.

        dense: of dense attention, without the pattern.
        """
        values = self.case.to_json()
        fields = [*_OF_INPUTS]
        if not dense and self.pattern is not None:
            fields += PATTERN_FIELDS[self.variant.takes]
        return {
            **{name: values[name] for name in fields},
            "sequences": self.inputs[0].shape[0],
            "device": self.inputs[0].device.type,
            "module": self.variant.name if self.variant.multihead else None,
            "mask": None if dense else self.variant.pattern_class,
            "dense": dense,
        }

    def on_rank(self, rank: int) -> Workload:
        """The part of the sequence that `rank` holds, in the order of the variant."""

        def cut(x):
            part = shard(x.detach(), rank, self.case.world_size, self.variant.shard_order)
            return part.clone().requires_grad_(x.requires_grad)

        cotangent = None if self.cotangent is None else cut(self.cotangent)
        return replace(self, inputs=[cut(x) for x in self.inputs], cotangent=cotangent)

    def one_rank(self, rank: int | None = None):
        """One rank of a simulated ring, None for that with most work: `models.ring.simulated`.

        Of a module, a `RankOfModule`.
        """
        options = {"world_size": self.case.world_size, "is_causal": self.case.is_causal}
        inputs = [x.detach() for x in self.inputs]
        with torch.no_grad():
            qkv = inputs if self.module is None else self.module.project(*inputs)
        one_rank = importlib.import_module(SIMULATION).OneRank
        one = one_rank(*qkv, rank=rank, pattern=self.pattern, **options, **self.variant.options)
        if self.module is None:
            return one
        cut = (one.rank, self.case.world_size, self.variant.shard_order)
        return RankOfModule(self.module, shard(*inputs, *cut).contiguous(), one)

    def recompute(
        self, rows: torch.Tensor, dtype: torch.dtype, *, dense: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Output rows and gradients by plain attention in `dtype`, on the pattern or dense.

        Returns out (B, R, ...) and the list of gradients of `leaves` (empty on the
        forward pass) for the cotangent that is zero outside `rows`.
        """
        backward = self.case.pass_ == "forward_backward"
        inputs = [x.detach().to(dtype).requires_grad_(backward) for x in self.inputs]
        module = None if self.module is None else copy.deepcopy(self.module).to(dtype)
        q, k, v = inputs if module is None else module.project(*inputs)
        pattern = None if dense else self.pattern
        with torch.set_grad_enabled(backward):
            out, _ = attend_rows(
                q[:, rows], k, v, rows, pattern=pattern, is_causal=self.case.is_causal
            )
            out = out if module is None else module.finish(out)
        if not backward:
            return out.detach(), []
        leaves = inputs + (list(module.parameters()) if module else [])
        return out.detach(), list(
            torch.autograd.grad(out, leaves, self.cotangent[:, rows].to(dtype))
        )

    def backend(self) -> str:
        """The backend that the variant runs on these tensors, asked of its own module.

        UnsupportedBackend with the reason where it runs none.
        """
        case, variant = self.case, self.variant
        if case.is_spread:
            _check_room(case.world_size, self.inputs[0].device)
        resolve = importlib.import_module(variant.module).resolve_backend
        asked = variant.options.get("backend", "auto")
        if variant.shard_order is not None:
            q = shard(self.inputs[0], 0, case.world_size, variant.shard_order)
            if "peer" in variant.options:
                options = {"is_causal": case.is_causal, "kv_heads": case.kv_heads}
                return resolve(q, variant.options["peer"], **options)
            return resolve(q.unflatten(-1, (case.heads, -1)) if variant.multihead else q, asked)
        if variant.takes == "blocks":
            return resolve(self.inputs[0], self.pattern, asked)
        if variant.takes == "branches":
            (q, *_) = self.inputs
            return resolve(q.unflatten(-1, (case.heads, -1)) if variant.multihead else q, asked)
        return resolve(*self.inputs[:2], asked, is_causal=case.is_causal)

    def useful_flops(self) -> int:
        """FLOPs of one pass over the pairs that the pattern needs, projections included.

        4 D per query-key pair (two products), each multiply-add counting two; a pair
        held by two branches counts twice. See BACKWARD_OVER_FORWARD for the backward pass.
        Of a simulated ring, those of the rank that is measured.
        """
        case = self.case
        backward = case.pass_ == "forward_backward"
        factor = {k: 1 + backward * b for k, b in BACKWARD_OVER_FORWARD.items()}
        pairs, tokens = self._pairs(), case.seq_len
        if case.simulated:
            one = self.one_rank()
            pairs = one.pairs()
            tokens = one.tokens.shape[1] if self.variant.multihead else tokens
        total = factor["attention"] * 4 * case.head_dim * case.batch * pairs
        if self.variant.multihead:
            embed_dim, kv_dim = case.heads * case.head_dim, case.kv_heads * case.head_dim
            weights = embed_dim * (2 * embed_dim + 2 * kv_dim)
            total += factor["projection"] * 2 * case.batch * tokens * weights
        return round(total)

    def density(self) -> float:
        """Query-key pairs that the pattern needs over those that dense attention needs."""
        return self._pairs() / self._dense_pairs()

    def _pairs(self) -> int:
        if self.pattern is None:
            return self._dense_pairs()
        return self.pattern.pairs(self.case.seq_len, self.case.heads, self.case.is_causal)

    def _dense_pairs(self) -> int:
        n = self.case.seq_len
        return self.case.heads * (n * (n + 1) // 2 if self.case.is_causal else n * n)


def build(
    case: Case, device: str, group: dist.ProcessGroup | None = None, *, backend: str | None = None
) -> Workload:
    """Seeded normal tensors of the case's shape on `device`, and the variant over them.

    group: the process group of a variant over ranks, where it is to be run. backend: in the
    place of the variant's own, to check one by name.
    """
    variant = VARIANTS[case.variant]
    if backend is not None:
        variant = replace(variant, options={**variant.options, "backend": backend})
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(case.seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    entry = getattr(importlib.import_module(variant.module), variant.entry.partition(":")[2])
    tokens = (case.batch, case.seq_len)
    if variant.multihead:
        inputs = [normal(*tokens, case.heads * case.head_dim)]
    else:
        inputs = [normal(*tokens, h, case.head_dim) for h in (case.heads, *2 * [case.kv_heads])]
    # Before any gradient is asked for: a mask that is read off q and k has none.
    pattern = _pattern(case, variant, inputs)
    module = None
    options = dict(variant.options)
    if case.is_spread:
        options["group"] = group
    if variant.multihead:
        torch.manual_seed(case.seed)
        module = entry(
            case.heads * case.head_dim,
            case.heads,
            case.segment_lengths,
            case.dilation_rates,
            num_kv_heads=case.kv_heads,
            device=device,
            dtype=dtype,
            **options,
        )

        def run(x):
            if case.simulated:
                ring = importlib.import_module(SIMULATION).simulated_ring_attention
                sizes = {"world_size": case.world_size, "is_causal": case.is_causal}
                return module.finish(
                    ring(*module.project(x), **sizes, pattern=pattern, **variant.options)
                )
            return module(x, x, x, is_causal=case.is_causal)[0]
    else:
        arguments = ()
        if variant.shard_order is None:
            arguments = {
                "branches": (case.segment_lengths, case.dilation_rates),
                "blocks": (pattern,),
                None: (),
            }[variant.takes]
        elif variant.takes is not None:
            options["pattern"] = pattern
        if case.simulated:
            entry = importlib.import_module(SIMULATION).simulated_ring_attention
            options["world_size"] = case.world_size

        def run(q, k, v):
            return entry(q, k, v, *arguments, is_causal=case.is_causal, **options)

    backward = case.pass_ == "forward_backward"
    for x in inputs:
        x.requires_grad_(backward)
    cotangent = None
    if backward:
        cotangent = normal(*inputs[0].shape)
    return Workload(case, variant, inputs, run, pattern, cotangent, module)


def _pattern(case: Case, variant: Variant, inputs: list[torch.Tensor]):
    """Who attends to whom, on the inputs' device; None for dense."""
    if variant.takes == "blocks":
        return _block_mask(case, *inputs[:2])
    if variant.takes == "branches":
        pattern_class = getattr(patterns, variant.pattern_class)
        return pattern_class(case.segment_lengths, case.dilation_rates)
    return None


def _block_mask(case: Case, q: torch.Tensor, k: torch.Tensor):
    builder = getattr(patterns, case.pattern)
    options = {
        "sparsity": case.sparsity,
        "block_size": case.block_size,
        "is_causal": case.is_causal,
    }
    if case.pattern == "top_k":
        return builder(q, k, **options)
    if case.pattern == "random":
        options["seed"] = case.seed
    return builder(case.seq_len, device=q.device, **options)


def _check_room(world_size: int, device: torch.device) -> None:
    """UnsupportedBackend unless every rank can have a device of its own: a core or a card."""
    cores = len(os.sched_getaffinity(0))
    name, here = ("core", cores) if device.type == "cpu" else ("GPU", torch.cuda.device_count())
    if world_size > here:
        raise UnsupportedBackend(
            f"{world_size} ranks need a {name} each, and here are {here}; simulated ranks do not"
        )
