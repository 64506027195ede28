"""The model of a configuration, for the tokens of its source."""

from __future__ import annotations

from experiments.training.config import RunConfig, check_names
from models.language.config import LongNetConfig


def language_model(config: RunConfig, source) -> LongNetConfig:
    """The configuration of the model, for the tokens of a source.

    Raises:
        ValueError: naming the field as it is called in the file.
    """
    sizes = {"vocab_size": source.vocab_size, "max_seq_len": config.data.seq_len}
    given = {**sizes, **config.model}
    check_names(LongNetConfig, "model.", given)
    try:
        made = LongNetConfig(**given)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None
    if made.max_seq_len < config.data.seq_len:
        raise ValueError(
            f"model.max_seq_len={made.max_seq_len}: expected at least "
            f"data.seq_len={config.data.seq_len}"
        )
    return made
