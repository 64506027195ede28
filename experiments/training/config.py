"""The configuration of a training run: a YAML file, read strictly, before any work. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from experiments import plain_yaml
from models.errors import as_integer, as_number, check_choice

PRECISIONS = ("float32", "bfloat16")
_RATE = "a positive number below 1000"
_ABOVE_1 = math.nextafter(1.0, 2.0)


def _set(config: object, **values) -> None:
    for name, value in values.items():
        object.__setattr__(config, name, value)


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW (arXiv 1711.05101) with a linear warm-up and a cosine decay.

    Args:
        learning_rate: the highest, reached where the warm-up ends.
        final_fraction: the last step's learning rate over the highest, from 0 to 1.
        warm_up_steps: steps over which the learning rate rises; at most all steps.
        betas: decay of the averages of gradients and of their squares, each from 0 to below 1.
        weight_decay: of matrices; embeddings, norms and biases have none.
        clip: the largest norm of all gradients together; None for any.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    learning_rate: float
    final_fraction: float = 0.1
    warm_up_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float | None = 1.0

    def __post_init__(self):
        _set(
            self,
            learning_rate=as_number("learning_rate", self.learning_rate, 1e3, _RATE),
            final_fraction=_or_zero(
                "final_fraction", self.final_fraction, _ABOVE_1, "a number from 0 to 1"
            ),
            warm_up_steps=as_integer("warm_up_steps", self.warm_up_steps, least=0),
            betas=_betas(self.betas),
            weight_decay=_or_zero("weight_decay", self.weight_decay, 1e3, "0, or " + _RATE),
        )
        if self.clip is not None:
            clip = as_number("clip", self.clip, 1e30, "a positive number or null")
            _set(self, clip=clip)


@dataclass(frozen=True)
class TrainingConfig:
    """What `experiments.training.loop.train` does with a model and a source of data.

    Args:
        steps: updates of the weights in all.
        optimiser: how they are made.
        seed: of the first weights, and of whatever the model draws in a step.
        precision: "float32", or "bfloat16" for autocast: float32 weights, bfloat16 products.
        compile: whether the model runs through torch.compile.
        micro_batch: rows that a process computes at once; their gradients add up to those of the
            batch. None for all of its rows.
        evaluate_every: steps between evaluations; the last step is always followed by one.
        evaluation_batches: how many of the validation batches are taken, the first ones.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    steps: int
    optimiser: OptimiserConfig
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    micro_batch: int | None = None
    evaluate_every: int = 100
    evaluation_batches: int = 8

    def __post_init__(self):
        if not isinstance(self.optimiser, OptimiserConfig):
            _set(self, optimiser=_built(OptimiserConfig, "optimiser", self.optimiser))
        if self.precision == "float16":
            raise ValueError(
                "precision='float16': expected float32 or bfloat16; small gradients vanish in "
                "float16, and nothing here scales the loss"
            )
        check_choice("precision", self.precision, PRECISIONS)
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile={self.compile!r}: expected true or false")
        for name in ("steps", "evaluate_every", "evaluation_batches"):
            _set(self, **{name: as_integer(name, getattr(self, name))})
        _set(self, seed=as_integer("seed", self.seed, least=0))
        if self.micro_batch is not None:
            _set(self, micro_batch=as_integer("micro_batch", self.micro_batch))
        if self.optimiser.warm_up_steps > self.steps:
            raise ValueError(
                f"optimiser.warm_up_steps={self.optimiser.warm_up_steps}: expected at most "
                f"steps={self.steps}"
            )


@dataclass(frozen=True)
class DataConfig:
    """Which source the batches come from.

    Args:
        source: its name, one of `experiments.training.sources.SOURCES`.
        seq_len: tokens of a row.
        batch: rows of a step, over all processes.
        seed: of the order of windows, or of the tasks.
        options: what this source takes besides.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    source: str
    seq_len: int
    batch: int
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.source, str):
            raise ValueError(f"source={self.source!r}: expected the name of a source")
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options={self.options!r}: expected a mapping, or nothing")
        _set(
            self,
            seq_len=as_integer("seq_len", self.seq_len, least=2),
            batch=as_integer("batch", self.batch),
            seed=as_integer("seed", self.seed, least=0),
        )


@dataclass(frozen=True)
class ParallelConfig:
    """How many of torchrun's processes share a row; the rest share the batch.

    Args:
        context: processes over which the tokens of a row are spread; above 1 for variants over
            ranks only.

    Raises:
        ValueError: unless it is an integer >= 1.
    """

    context: int = 1

    def __post_init__(self):
        _set(self, context=as_integer("context", self.context))


@dataclass(frozen=True)
class OutputConfig:
    """What is kept on the way.

    Args:
        checkpoint_every: steps between checkpoints; there is one after the last step too.

    Raises:
        ValueError: unless it is an integer >= 1.
    """

    checkpoint_every: int = 100

    def __post_init__(self):
        _set(self, checkpoint_every=as_integer("checkpoint_every", self.checkpoint_every))


@dataclass(frozen=True)
class RunConfig:
    """A whole configuration file.

    Args:
        model: the fields of `models.LongNetConfig`, but vocab_size, which is the source's;
            max_seq_len is that of the data unless it is given.
        data: see `DataConfig`.
        training: see `TrainingConfig`.
        parallel: see `ParallelConfig`.
        output: see `OutputConfig`.
    """

    model: Mapping[str, object]
    data: DataConfig
    training: TrainingConfig
    parallel: ParallelConfig = ParallelConfig()
    output: OutputConfig = OutputConfig()

    def to_json(self) -> dict:
        """All of it, as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))


def digest(values: object) -> str:
    """SHA-256 (64 hex digits) of JSON values; the order of keys counts for nothing."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> RunConfig:
    """The configuration in a file.

    Raises:
        ValueError: one line with the file, the field, its value and what was expected.
        OSError: where it cannot be read.
    """
    try:
        return from_values(plain_yaml.loads(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_values(values: object) -> RunConfig:
    """The configuration that a YAML file's values stand for.

    Raises:
        ValueError: naming the field with its section, its value and what was expected.
    """
    sections = {
        "data": DataConfig,
        "training": TrainingConfig,
        "parallel": ParallelConfig,
        "output": OutputConfig,
    }
    if not isinstance(values, Mapping):
        raise ValueError(f"expected the sections model, {', '.join(sections)}")
    check_names(RunConfig, "", values)
    model = values["model"]
    if not isinstance(model, Mapping):
        raise ValueError(f"model={model!r}: expected a mapping of the fields of LongNetConfig")
    if "vocab_size" in model:
        raise ValueError(
            f"model.vocab_size={model['vocab_size']!r}: expected none; it is the source's"
        )
    built = {
        name: _built(kind, name, values[name]) for name, kind in sections.items() if name in values
    }
    return RunConfig(model=dict(model), **built)


def _built(kind: type, where: str, values: object):
    """A dataclass out of a section; errors name the section and the field."""
    if not isinstance(values, Mapping):
        names = ", ".join(one.name for one in fields(kind))
        raise ValueError(f"{where}={values!r}: expected a mapping of {names}")
    check_names(kind, f"{where}.", values)
    try:
        return kind(**values)
    except ValueError as error:
        # What is nested has named its section already.
        raise ValueError(f"{where}.{error}") from None


def check_names(kind: type, before: str, values: Mapping) -> None:
    """Check that a dataclass has fields of these names, and that none it needs is missing.

    Args:
        kind: the dataclass.
        before: what stands before a name in messages, as "training.".
        values: by name.

    Raises:
        ValueError: naming the field.
    """
    known = {one.name: one for one in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"{before}{name}: no such field; there are {', '.join(known)}")
    for name, one in known.items():
        is_needed = one.default is MISSING and one.default_factory is MISSING
        if is_needed and name not in values:
            raise ValueError(f"{before}{name}: missing")


def _or_zero(name: str, value: object, below: float, expected: str) -> float:
    """As `as_number`, of which 0 is one too."""
    is_zero = not isinstance(value, bool) and value == 0
    return 0.0 if is_zero else as_number(name, value, below, expected)


def _betas(betas: object) -> tuple[float, float]:
    expected = "two numbers from 0 to below 1"
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise ValueError(f"betas={betas!r}: expected {expected}")
    return tuple(_or_zero("betas", beta, 1.0, expected) for beta in betas)
