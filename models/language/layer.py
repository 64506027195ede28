"""One layer: self-attention and feed-forward network, each with MAGNETO's two LayerNorms.

Source: MAGNETO (arXiv 2210.06423), figure 2: `x + W_out LN(f(W_in LN(x)))`, in both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.language.attention import Attend
from models.language.config import LongNetConfig
from models.language.initialisation import initialise_projection, sub_layer_norm_gain
from models.language.xpos import Rotation


class SelfAttention(nn.Module):
    """LayerNorm, q, k, v, xPos, attention, LayerNorm, output projection.

    Args:
        config: of the model.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        config: LongNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        embed, kv = config.embed_dim, config.head_dim * config.kv_heads
        self.head_dim = config.head_dim
        self.norm = nn.LayerNorm(embed, **factory)
        self.q_proj = nn.Linear(embed, embed, **factory)
        self.k_proj = nn.Linear(embed, kv, **factory)
        self.v_proj = nn.Linear(embed, kv, **factory)
        self.inner_norm = nn.LayerNorm(embed, **factory)
        self.out_proj = nn.Linear(embed, embed, **factory)

    def reset_parameters(self, layers: int) -> None:
        """Initialise, see `models.language.initialisation`.

        Args:
            layers: of the model.
        """
        gain = sub_layer_norm_gain(layers)
        for projection in (self.q_proj, self.k_proj):
            initialise_projection(projection)
        for projection in (self.v_proj, self.out_proj):
            initialise_projection(projection, gain)
        self.norm.reset_parameters()
        self.inner_norm.reset_parameters()

    def forward(self, x: torch.Tensor, rotation: Rotation, attend: Attend) -> torch.Tensor:
        """What is added to x.

        Args:
            x: (B, N, E).
            rotation: xPos' tables of the N positions.
            attend: (q (B, N, H, D), k, v (B, N, Hkv, D)) -> (B, N, H, D).

        Returns:
            (B, N, E).
        """
        x = self.norm(x)
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attend(rotation.of_queries(q), rotation.of_keys(k), v)
        return self.out_proj(self.inner_norm(out.flatten(2)))


class FeedForward(nn.Module):
    """LayerNorm, fc1, GELU, LayerNorm, fc2.

    Args:
        config: of the model.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        config: LongNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(config.embed_dim, **factory)
        self.fc1 = nn.Linear(config.embed_dim, config.ffn_dim, **factory)
        self.inner_norm = nn.LayerNorm(config.ffn_dim, **factory)
        self.fc2 = nn.Linear(config.ffn_dim, config.embed_dim, **factory)

    def reset_parameters(self, layers: int) -> None:
        """Initialise, see `models.language.initialisation`.

        Args:
            layers: of the model.
        """
        gain = sub_layer_norm_gain(layers)
        for projection in (self.fc1, self.fc2):
            initialise_projection(projection, gain)
        self.norm.reset_parameters()
        self.inner_norm.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to x.

        Args:
            x: (B, N, E).

        Returns:
            (B, N, E).
        """
        return self.fc2(self.inner_norm(F.gelu(self.fc1(self.norm(x)))))


class Layer(nn.Module):
    """Self-attention, then feed-forward, each added to its input.

    Args:
        config: of the model.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        config: LongNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.attention = SelfAttention(config, device=device, dtype=dtype)
        self.feed_forward = FeedForward(config, device=device, dtype=dtype)

    def reset_parameters(self, layers: int) -> None:
        """Initialise, see `models.language.initialisation`.

        Args:
            layers: of the model.
        """
        self.attention.reset_parameters(layers)
        self.feed_forward.reset_parameters(layers)

    def forward(self, x: torch.Tensor, rotation: Rotation, attend: Attend) -> torch.Tensor:
        """The layer's output.

        Args:
            x, rotation, attend: as of `SelfAttention.forward`.

        Returns:
            (B, N, E).
        """
        x = x + self.attention(x, rotation, attend)
        return x + self.feed_forward(x)
