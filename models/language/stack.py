"""What LongNet's decoder and encoder share: embedding, layers, the last LayerNorm, saving."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from models.documents import check_document_ids
from models.language import saving
from models.language.attention import Attend, VariantAttention
from models.language.config import LongNetConfig
from models.language.initialisation import initialise_embedding
from models.language.layer import Layer
from models.language.xpos import Rotation, rotation
from models.padding import check_padding_mask


class LongNetLayers(nn.Module):
    """What both models are: embedding, layers, a last LayerNorm; a subclass says `is_causal`.

    Args:
        config, group, device, dtype: as of `models.LongNetLM`.

    Raises:
        ValueError: as `models.LongNetLM`.
    """

    is_causal: bool

    def __init__(
        self,
        config: LongNetConfig,
        *,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(config, LongNetConfig):
            raise ValueError(f"config={type(config).__name__}: expected a LongNetConfig")
        self.config = config
        self.variant = VariantAttention(config, self.is_causal, group)
        factory = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim, **factory)
        self.layers = nn.ModuleList(Layer(config, **factory) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.embed_dim, **factory)
        self.head = None
        if self.is_causal and not config.tied_embeddings:
            sizes = (config.embed_dim, config.vocab_size)
            self.head = nn.Linear(*sizes, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise, see `models.language.initialisation`."""
        initialise_embedding(self.embedding.weight)
        for layer in self.layers:
            layer.reset_parameters(self.config.layers)
        self.norm.reset_parameters()
        if self.head is not None:
            initialise_embedding(self.head.weight)

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors`, whole or not at all, and `config.json`, to be looked at.

        Args:
            folder: made where it is missing.

        Raises:
            ModuleNotFoundError: without the package safetensors.
        """
        saving.write(folder, type(self).__name__, self.config, self.state_dict())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The model that `save` wrote, with its weights' dtypes.

        Args:
            folder: where it is.
            group, device: as of the class.

        Returns:
            The model.

        Raises:
            ValueError: where the folder holds a model of another class, or a bad configuration.
            FileNotFoundError: where there are no weights.
            RuntimeError: where the weights are not those of the configuration.
            ModuleNotFoundError: without the package safetensors.
        """
        config, state = saving.read(folder, cls.__name__, device)
        # Without memory, and so without being initialised first.
        model = cls(config, group=group, device="meta")
        model.load_state_dict(state, assign=True)
        return model

    def check_tokens(self, tokens, key_padding_mask, document_ids=None) -> None:
        """Check the arguments of `forward`; ValueError on bad ones."""
        if not isinstance(tokens, torch.Tensor) or tokens.dim() != 2:
            got = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
            raise ValueError(f"tokens={got}: expected a tensor (batch, tokens)")
        if tokens.dtype != torch.int64:
            raise ValueError(f"tokens.dtype={tokens.dtype}: expected torch.int64")
        if tokens.shape[1] == 0 and self.variant.order is None:
            raise ValueError(f"tokens.shape={tuple(tokens.shape)}: expected 1 token or more")
        # On a card the range is not looked at, which would wait for it.
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and tokens.numel():
            least, most = (int(x) for x in tokens.aminmax())
            if least < 0 or most >= self.config.vocab_size:
                raise ValueError(
                    f"tokens from {least} to {most}: expected 0 to vocab_size - 1 = "
                    f"{self.config.vocab_size - 1}"
                )
        if key_padding_mask is not None:
            check_padding_mask(key_padding_mask, tokens)
        if document_ids is not None:
            check_document_ids(document_ids, tokens)
        self.variant.check_documents(document_ids)

    def _rotation(self, positions: torch.Tensor) -> Rotation:
        scale_base = self.config.xpos_scale_base if self.is_causal else None
        center = self.config.max_seq_len / 2
        return rotation(positions, self.config.head_dim, center=center, scale_base=scale_base)

    def hidden(self, tokens, key_padding_mask, document_ids) -> torch.Tensor:
        """Hidden states (B, N, E); arguments as of `models.LongNetLM.forward`."""
        self.check_tokens(tokens, key_padding_mask, document_ids)
        positions, seq_len = self.variant.places(tokens, key_padding_mask)
        if seq_len > self.config.max_seq_len:
            raise ValueError(
                f"{seq_len} tokens: expected at most max_seq_len={self.config.max_seq_len}"
            )
        attend = self.variant.over(seq_len, tokens.device, key_padding_mask, document_ids)
        return self.run_layers(tokens, positions, [attend] * self.config.layers)

    def run_layers(
        self, tokens: torch.Tensor, positions: torch.Tensor, attends: list[Attend]
    ) -> torch.Tensor:
        """The layers on tokens (B, N) at positions (N,), each by its attention; (B, N, E)."""
        turned = self._rotation(positions)
        x = self.embedding(tokens)
        recomputes = self.config.checkpoint_activations and torch.is_grad_enabled()
        for layer, attend in zip(self.layers, attends, strict=True):
            if recomputes:
                run = partial(layer, rotation=turned, attend=attend)
                # Nothing in a layer is random.
                x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, turned, attend)
        return self.norm(x)
