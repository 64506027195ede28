"""LongNet, the language model (arXiv 2307.02486): a decoder, and an encoder of the same layers.

A Transformer with MAGNETO's sub-LayerNorm (arXiv 2210.06423) and xPos (arXiv 2212.10554) around any
attention of the registry that can serve, dilated attention by default. The parts are in
`models.language`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.errors import as_integer
from models.language.cache import KeyValueCache
from models.language.cached_attention import prompt_attention, step_attention
from models.language.config import LongNetConfig as LongNetConfig
from models.language.generation import check_temperature, next_tokens
from models.language.stack import LongNetLayers


class LongNetEncoder(LongNetLayers):
    """LongNet's layers with attention to both sides: hidden states of tokens.

    Positions are by xPos' rotation alone, as its decay is one-sided.

    Args:
        config, group, device, dtype: as of `LongNetLM`.

    Raises:
        ValueError: as `LongNetLM`.
    """

    is_causal = False

    def forward(
        self,
        tokens: torch.Tensor,
        *,
        key_padding_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states.

        Args:
            tokens, key_padding_mask, document_ids: as of `LongNetLM.forward`.

        Returns:
            (B, N, E), after the last LayerNorm.

        Raises:
            ValueError, UnsupportedBackend: as `LongNetLM.forward`.
        """
        return self.hidden(tokens, key_padding_mask, document_ids)


class LongNetLM(LongNetLayers):
    """LongNet as a decoder: scores of the next token, and generation with cached keys and values.

    Args:
        config: of the model; `vocab_size` tokens are scored by the embedding's weights, or where
            these are not tied by a projection without bias.
        group: a ProcessGroup or 1-D DeviceMesh over whose ranks the sequence is sharded, of a
            variant with a `shard_order`. The model then takes this rank's tokens, as
            `models.ring.shard(tokens, rank, world_size, order)` cuts them, and positions are those
            in the whole sequence. None for the default group or, where there is none, this process,
            which takes the whole sequence as it is read, whatever the variant's order.
            Parameters are the same on all ranks, and so must be their gradients: add them up.
        device, dtype: of the parameters.

    Raises:
        ValueError: for a group with a variant that takes the whole sequence.
    """

    is_causal = True

    def forward(
        self,
        tokens: torch.Tensor,
        *,
        key_padding_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of the token after each.

        Args:
            tokens: (B, N) int64, from 0 to vocab_size - 1; N up to max_seq_len. With a group this
                rank's, and N may be 0.
            key_padding_mask: (B, N) bool, True where a token is not attended to. Padding has
                places as other tokens do: positions and segments are counted from the row's start.
            document_ids: (B, N) integers; a token attends to those of its own document, in which
                dilated segments start anew. Not over ranks, and not with pattern "top_k".

        Returns:
            Logits (B, N, V).

        Raises:
            ValueError: on bad arguments.
            UnsupportedBackend: where the variant cannot compute this.
        """
        return self._logits(self.hidden(tokens, key_padding_mask, document_ids))

    @torch.no_grad()
    def generate(
        self,
        prompt: torch.Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Continue sequences, token by token.

        Args:
            prompt: (B, N) int64, each sequence in its own order. Shorter ones are padded on the
                left.
            max_new_tokens: how many, >= 1; N and these are at most max_seq_len.
            temperature: 0 for the likeliest token, else of the drawing.
            generator: of the random numbers; None for PyTorch's own.
            key_padding_mask: (B, N) bool, True for padding.

        Returns:
            (B, N + max_new_tokens), the prompt first.

        Raises:
            ValueError: on bad arguments, and over several ranks.
            UnsupportedBackend: where the variant cannot compute this.
        """
        count = as_integer("max_new_tokens", max_new_tokens)
        temperature = check_temperature(temperature)
        self.check_tokens(prompt, key_padding_mask)
        if prompt.shape[1] + count > self.config.max_seq_len:
            raise ValueError(
                f"max_new_tokens={count}: expected at most {self.config.max_seq_len} - "
                f"{prompt.shape[1]}, max_seq_len less the prompt"
            )
        room = prompt.shape[1] + count
        logits, cache = self.prefill(prompt, key_padding_mask=key_padding_mask, reserved=room)
        found = [prompt]
        for made in range(1, count + 1):
            found.append(next_tokens(logits, temperature, generator))
            if made < count:
                logits = self.step(found[-1], cache)
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def prefill(
        self,
        prompt: torch.Tensor,
        *,
        key_padding_mask: torch.Tensor | None = None,
        reserved: int = 0,
    ) -> tuple[torch.Tensor, KeyValueCache]:
        """Read a prompt.

        Args:
            prompt, key_padding_mask: as of `generate`.
            reserved: tokens, the prompt's included, for which the cache gets memory at once.

        Returns:
            Logits (B, V) of the token after the prompt, and the cache for `step`.

        Raises:
            ValueError, UnsupportedBackend: as `generate`.
        """
        reserved = as_integer("reserved", reserved, least=0)
        self.check_tokens(prompt, key_padding_mask)
        if prompt.shape[1] == 0:
            raise ValueError(f"prompt.shape={tuple(prompt.shape)}: expected 1 token or more")
        if self.variant.is_sharded:
            raise ValueError(
                "generation over several ranks: expected a process that is a ring of one, as "
                "`LongNetLM.load` makes where torch.distributed has no group of several"
            )
        if key_padding_mask is not None and bool(key_padding_mask[:, -1].any()):
            raise ValueError("key_padding_mask: expected prompts padded on the left")
        n = prompt.shape[1]
        cache = KeyValueCache(self.config.layers, self.config.max_seq_len, reserved)
        cache.check_room(n)
        cache.mask(key_padding_mask)
        attend = self.variant.over(n, prompt.device, key_padding_mask, in_order=True)
        attends = [
            prompt_attention(self.variant, cache, layer, attend, key_padding_mask)
            for layer in range(self.config.layers)
        ]
        hidden = self.run_layers(prompt, torch.arange(n, device=prompt.device), attends)
        cache.advance(n)
        return self._logits(hidden[:, -1]), cache

    @torch.no_grad()
    def step(self, tokens: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        """Read one more token of each sequence; the logits are those of `forward` on all.

        Args:
            tokens: (B, 1) int64.
            cache: from `prefill`, changed in place; `cache.keys_read` is of this step.

        Returns:
            Logits (B, V) of the token after it.

        Raises:
            ValueError: on bad arguments, and where max_seq_len tokens are held.
        """
        self.check_tokens(tokens, None)
        if tokens.shape != (cache.batch, 1):
            raise ValueError(
                f"tokens.shape={tuple(tokens.shape)}: expected {(cache.batch, 1)}, one more of "
                "each sequence that the cache holds"
            )
        cache.check_room(1)
        attends = [
            step_attention(self.variant, cache, layer) for layer in range(self.config.layers)
        ]
        position = torch.tensor([cache.length], device=tokens.device)
        hidden = self.run_layers(tokens, position, attends)
        cache.advance(1)
        return self._logits(hidden[:, -1])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.embedding.weight if self.head is None else self.head.weight)
