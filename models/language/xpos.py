"""xPos: positions by rotation, and a decay with the distance (arXiv 2212.10554).

The score of a query at n and a key at m, n >= m, is the sum over pairs i of coordinates

    zeta_i ^ ((n - m) / scale_base) * Re(q_i conj(k_i) exp(1j (n - m) theta_i)),

with q_i, k_i as complex numbers, theta_i = 10000 ^ (-i / (D/2)) and
zeta_i = (i / (D/2) + 0.4) / 1.4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rotation(NamedTuple):
    """Tables of the tokens' positions, cosines and sines, each (N, D/2), times the scale.

    q_cos, q_sin: for queries, scaled by zeta ^ (position / scale_base).
    k_cos, k_sin: for keys, scaled by zeta ^ -(position / scale_base).
    """

    q_cos: torch.Tensor
    q_sin: torch.Tensor
    k_cos: torch.Tensor
    k_sin: torch.Tensor

    def of_queries(self, q: torch.Tensor) -> torch.Tensor:
        """Rotate and scale queries.

        Args:
            q: (B, N, H, D).

        Returns:
            (B, N, H, D) in q's dtype, computed in float32 at least.
        """
        return _rotate(q, self.q_cos, self.q_sin)

    def of_keys(self, k: torch.Tensor) -> torch.Tensor:
        """Rotate and scale keys.

        Args:
            k: (B, N, Hkv, D).

        Returns:
            (B, N, Hkv, D) in k's dtype, computed in float32 at least.
        """
        return _rotate(k, self.k_cos, self.k_sin)


def rotation(
    positions: torch.Tensor, head_dim: int, *, center: float, scale_base: float | None
) -> Rotation:
    """The tables of xPos.

    Scores depend on differences of positions alone, so these are counted from `center`, the
    middle of the longest sequence: powers of zeta then stay between
    0.2857 ^ (+-longest / 2 / scale_base), which float16 must hold. Angles are computed in float64:
    in float32 that of position 500,000 would be wrong by 0.03.

    Args:
        positions: (N,) int64, in the whole sequence.
        head_dim: D, even.
        center: the position that has angle 0 and scale 1.
        scale_base: tokens, over which coordinate i decays to zeta_i. None for no decay, rotations
            alone: the decay is one-sided, it grows again towards keys after the query, and so is
            not for attention to both sides.

    Returns:
        Tables on the positions' device, float32.
    """
    half = head_dim // 2
    place = torch.arange(half, dtype=torch.float64, device=positions.device) / half
    at = (positions.to(torch.float64) - center)[:, None]
    angle = at * 10000.0**-place
    cos, sin = angle.cos(), angle.sin()
    if scale_base is None:
        tables = (cos, sin, cos, sin)
    else:
        scale = ((place + 0.4) / 1.4) ** (at / scale_base)
        tables = (cos * scale, sin * scale, cos / scale, sin / scale)
    return Rotation(*(table.to(torch.float32) for table in tables))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = x.to(torch.promote_types(x.dtype, cos.dtype)).unflatten(-1, (-1, 2)).contiguous()
    cos, sin = cos[:, None], sin[:, None]
    if torch.compiler.is_compiling():
        # Inductor joins these, and has no code for complex numbers.
        even, odd = pairs.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:
        # One product of complex numbers: four times as fast as eight operations on halves.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)
