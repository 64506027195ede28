"""The source of batches that a configuration names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection

from experiments.training.config import DataConfig
from experiments.training.corpus import corpus
from experiments.training.tasks import TASKS
from experiments.training.windows import Windows
from models.errors import check_choice

# Next-byte prediction in windows of a corpus.
TEXT = "text"
SOURCES = (TEXT, *TASKS)


def build(config: DataConfig):
    """The source, a `experiments.training.batch.Source`.

    Of "text", `options` are `corpus`, the name of one, and the sizes that
    `experiments.training.corpus.corpus` takes; of a task, what its class takes by keyword.

    Raises:
        ValueError: naming the field as it is called in the file.
        ModuleNotFoundError: where the packages of a corpus are not here; says what to install.
    """
    sizes = (config.seq_len, config.batch, config.seed)
    try:
        check_choice("source", config.source, SOURCES)
        if config.source == TEXT:
            _check_options(config.options, {"corpus", *_by_keyword(corpus)})
            options = dict(config.options)
            name = options.pop("corpus", "python")
            return Windows(corpus(name, **options), *sizes)
        task = TASKS[config.source]
        _check_options(config.options, _by_keyword(task))
        return task(*sizes, **config.options)
    except ValueError as error:
        raise ValueError(f"data.{error}") from None


def _by_keyword(function: Callable) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}


def _check_options(options: Collection[str], known: set[str]) -> None:
    for name in options:
        if name not in known:
            raise ValueError(
                f"options.{name}: no such option; there are {', '.join(sorted(known))}"
            )
