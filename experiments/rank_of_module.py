"""A virtual rank of a module over a ring: what one of its ranks computes, alone on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RankOfModule:
    """A virtual rank of a module: projections of its own tokens around a rank of the ring.

    tokens: (B, n, E), those of the rank. ring: its `models.ring.simulated.OneRank`, which has the
    keys of all ranks already.
    """

    module: torch.nn.Module
    tokens: torch.Tensor
    ring: object

    @property
    def rank(self) -> int:
        return self.ring.rank

    def pairs(self) -> int:
        return self.ring.pairs()

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        """The rank's output (B, n, E)."""
        self.module.project(self.tokens)
        out, _ = self.ring.forward()
        return self.module.finish(out)

    def forward_backward(self, grad_out: torch.Tensor) -> None:
        """Both passes of the rank: grad_out (B, n, E) goes back to its tokens and all parameters.

        As of the ring, gradients of its keys lack what other ranks would send back.
        """
        module, tokens = self.module, self.tokens.detach().requires_grad_()
        qkv = module.project(tokens)
        out, lse = self.ring.forward()
        leaf = out.detach().requires_grad_()
        finishing = [*module.norm.parameters(), *module.out_proj.parameters()]
        (grad, *_) = torch.autograd.grad(module.finish(leaf), [leaf, *finishing], grad_out)
        grad_q = self.ring.backward(grad, out, lse)
        grads = [grad_q, *map(torch.zeros_like, qkv[1:])]
        torch.autograd.grad(qkv, [tokens, *module.in_proj.parameters()], grads)
