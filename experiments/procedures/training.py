"""A case of training: the attention is checked, a step is timed alone, then models are trained.

Each training has a seed of its own, drawn from the system and kept in the record: another round is
as many seeds more, and none was chosen. On a CPU as many trainings run at once as there are cores,
each on one; on a card one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import SystemRandom

import numpy as np
import torch

# What an optimiser's first step imports, a second and 100 MB: here it is before the forks.
import torch._dynamo

from experiments import check, measure
from experiments.training import side_by_side, sources
from experiments.training.batch import Source
from experiments.training.case import TrainingCase
from experiments.training.config import RunConfig
from experiments.training.evaluation import Bin
from experiments.training.flops import matrix_flops
from experiments.training.kneser_ney import KneserNey
from experiments.training.layer_attention import attention_of
from experiments.training.loop import StepReport, train
from experiments.training.model import language_model
from experiments.training.recipes import ORDERS, RECIPES, run_config
from experiments.warm_up import WARM_UP_MS
from models.errors import UnsupportedBackend
from models.longnet import LongNetLM

# Of the losses of single steps, as many means are kept.
_MEANS = 25
_SEEDS = 2**31
# More steps than any training has: of one that comes to no evaluation.
_NO_END = 2**31


def make_reference(
    case: TrainingCase, device: str, reference: Path, kept: Callable = check.anew
) -> dict:
    """Write the oracle's rows of one layer's attention to `reference`; what is known beforehand.

    Fields of the record: realised_density; useful_flops, of a step; backend, or `unsupported`, the
    reason why no backend can; and `learning`, see `experiments.schema`. kept: as of
    `check.write_reference`, for n-gram models.
    """
    measure.prepare(device)
    work = attention_of(case, device)
    # A backward pass is made, whether or not it is checked.
    counted = replace(work, case=replace(work.case, pass_=case.pass_))
    layers = RECIPES[case.recipe].layers
    known = {
        "realised_density": work.density(),
        "useful_flops": layers * case.batch * counted.useful_flops() + matrix_flops(case),
    }
    try:
        known["backend"] = work.backend()
    except UnsupportedBackend as error:
        return {**known, "unsupported": str(error)}
    check.write_reference(work, reference)
    return {**known, "learning": _learning(run_config(case, 0), kept)}


def replicate(case: TrainingCase, device: str, reference: Path, limits: dict) -> dict:
    """One replicate: "samples_ms" of steps, "peak_memory_bytes" of one, "trainings" and "error".

    To be called in a process that has not yet run a torch op on several threads: on a CPU it forks.
    CheckFailed if the attention is wrong, before any training.
    """
    count, random = RECIPES[case.recipe].seeds, SystemRandom()
    calls = [(case, random.randrange(_SEEDS), device) for _ in range(count)]
    if device != "cpu":
        measured = _measured(case, device, reference, limits)
        return {**measured, "trainings": [training(*one) for one in calls]}
    with side_by_side.prepared(training, calls) as trainings:
        measured = _measured(case, device, reference, limits)
        return {**measured, "trainings": trainings.results()}


def training(case: TrainingCase, seed: int, device: str) -> dict:
    """The record's object of one training, on as many threads as torch has here."""
    config = run_config(case, seed)
    source, model = _made(config, device)
    result = train(config.training, source=source, model=model)
    last = result.evaluations[-1]
    return {
        "seed": seed,
        "steps": len(result.reports),
        "steps_s": sum(result.step_ms) / 1e3,
        "step_losses": [float(np.mean(part)) for part in _parts(result.losses)],
        "evaluations": [
            {"step": one.step, "loss": one.loss, "accuracy": one.accuracy}
            for one in result.evaluations
        ],
        "tokens": last.tokens,
        "by_position": [_of_bin(one) for one in last.by_position],
        "by_distance": [_of_bin(one) for one in last.by_distance],
    }


def _measured(case: TrainingCase, device: str, reference: Path, limits: dict) -> dict:
    """The check, the peak of a step, and steps timed one after another with all cores."""
    measure.prepare(device)
    work = attention_of(case, device)
    error = check.compare_whole(work, work.step(), reference)
    del work
    config = run_config(case, 0)
    source, model = _made(config, device)
    endless = replace(config.training, steps=_NO_END, evaluate_every=_NO_END)
    made = {"source": source, "model": model}
    _, peak = measure.peak_memory(lambda: train(endless, **made, until=1), device)
    measure.keep_freed_memory()
    taken: list[float] = []

    def is_enough() -> bool:
        return not measure.wants_more(_warm(taken), limits)

    def note(report: StepReport, state: object) -> None:
        taken.append(report.ms)

    train(endless, **made, on_step=note, should_stop=is_enough)
    # It stops after the step in which it is told to.
    samples = _warm(taken)[: limits["max_samples"]]
    return {"samples_ms": samples, "peak_memory_bytes": peak, "error": error}


def _warm(taken: list[float]) -> list[float]:
    """The times of the steps that begin after WARM_UP_MS, and after the first."""
    ends = np.cumsum(taken)
    return taken[int(np.searchsorted(ends, WARM_UP_MS)) + 1 :]


def _made(config: RunConfig, device: str) -> tuple[Source, LongNetLM]:
    """The source and the model, with its first weights."""
    source = sources.build(config.data)
    torch.manual_seed(config.training.seed)
    # On the CPU first: the same weights whatever the device.
    return source, LongNetLM(language_model(config, source)).to(device)


def _learning(config: RunConfig, kept: Callable) -> dict:
    """The record's `learning`."""
    source, model = _made(config, "cpu")
    facts = dict(source.description)
    packages = facts.pop("packages", None)
    for name in ("seq_len", "batch", "seed", "task", "corpus"):
        facts.pop(name, None)
    return {
        "source": source.name,
        "sha256": facts.pop("sha256", None),
        "packages": packages,
        "facts": {name: value for name, value in facts.items() if value is not None},
        "parameters": sum(one.numel() for one in model.parameters()),
        "n_gram_losses": _n_gram_losses(config, source, kept) if packages else None,
    }


def _n_gram_losses(config: RunConfig, source, kept: Callable) -> dict:
    """By order, bits per byte of a Kneser-Ney model of the training text on the validated bytes."""
    batches = config.training.evaluation_batches
    validated = batches * source.batch_size * source.seq_len
    corpus = source.corpus

    def losses() -> dict:
        text = corpus.validation[: validated + 1]
        return {str(n): KneserNey(corpus.train, n).bits_per_byte(text) for n in ORDERS}

    return kept({"n_gram": corpus.sha256, "validated": validated}, losses, "cpu")


def _parts(values: list[float]) -> list[np.ndarray]:
    return np.array_split(values, min(_MEANS, len(values)))


def _of_bin(one: Bin) -> dict:
    return {
        "first": one.first,
        "tokens": one.tokens,
        "loss": one.loss,
        "accuracy": one.accuracy,
    }
