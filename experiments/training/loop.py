"""The training loop: steps, evaluations, and when to stop. It writes nothing."""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from experiments.training.batch import IGNORED
from experiments.training.config import TrainingConfig
from experiments.training.evaluation import Evaluation, evaluate
from experiments.training.micro_batches import micro_batches
from experiments.training.parallel import ALONE, Place
from experiments.training.schedule import learning_rate
from experiments.training.state import TrainingState


class Diverged(ValueError):
    """A loss or gradient is not finite; the weights are those after the step before."""


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Args:
        step: its number, from 1.
        loss: bits per asked token of its batch, before the step.
        learning_rate: of the step.
        gradient_norm: of all gradients together, before clipping.
        tokens: of the batch, over all processes.
        ms: from the request for its batch until its weights are there, in this process.
        evaluation: after it, where one was due.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    ms: float
    evaluation: Evaluation | None


@dataclass(frozen=True)
class TrainingResult:
    """What a call of `train` did.

    Args:
        reports: of its steps.
        state: after them.
        is_complete: whether the last step of the configuration is done.
    """

    reports: tuple[StepReport, ...]
    state: TrainingState
    is_complete: bool

    @property
    def losses(self) -> list[float]:
        """Bits per asked token of each step's batch, before the step."""
        return [one.loss for one in self.reports]

    @property
    def step_ms(self) -> list[float]:
        """Milliseconds of each step, without evaluations."""
        return [one.ms for one in self.reports]

    @property
    def median_ms(self) -> float:
        """The median of `step_ms`; nan without a step."""
        return statistics.median(self.step_ms) if self.reports else math.nan

    @property
    def evaluations(self) -> list[Evaluation]:
        """In their order."""
        return [one.evaluation for one in self.reports if one.evaluation]


def train(
    config: TrainingConfig,
    *,
    source,
    model: nn.Module,
    place: Place = ALONE,
    resume: dict | None = None,
    on_step: Callable[[StepReport, TrainingState], object] | None = None,
    until: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train a model in place.

    The batch of step i is number i - 1 of the source, and what the model draws is seeded by the
    step, so that a training that goes on from a checkpoint gives what one without a break gives:
    to the bit, on a CPU with as many threads. Torch's random state is the caller's afterwards.

    Args:
        config: see `TrainingConfig`; its seed also gave the first weights, if the caller so chose.
        source: `batch(split, index, rows=...)` gives `experiments.training.batch.Batch`es.
        model: tokens (B, n) int64 to logits (B, n, V), on its device; of several processes, the
            same weights in each.
        place: of this process.
        resume: what `TrainingState.to_dict` gave.
        on_step: called after each step, with what it did and the state after it.
        until: the step to stop after, if it is before the last one.
        should_stop: called in each step; where it is true in any process, all of them stop after
            this step.

    Returns:
        The steps of this call.

    Raises:
        ValueError: on bad arguments, before any step; or a batch that asks for no token.
        Diverged: where a loss or gradient is not finite.
    """
    device = next(model.parameters()).device
    state = TrainingState(model, config.optimiser)
    if resume is not None:
        state.restore(resume)
    _check_evaluation(config, source, place)
    stepping = _Stepping(config, source, place, device, state)
    reports: list[StepReport] = []
    is_told, last = False, min(config.steps, config.steps if until is None else until)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while state.step < last and not is_told:
            report, is_told = stepping.step(should_stop)
            reports.append(report)
            if on_step:
                on_step(report, state)
    return TrainingResult(tuple(reports), state, state.step == config.steps)


class _Stepping:
    """A step, of what does not change from one to the next."""

    def __init__(self, config, source, place: Place, device: torch.device, state: TrainingState):
        self.config, self.place, self.state, self.device = config, place, state, device
        self.source = source
        self.parts = {"place": place, "rows": config.micro_batch, "device": device}
        self.parameters = [one for one in state.model.parameters() if one.requires_grad]
        self.compiled = torch.compile(state.model) if config.compile else state.model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits in the precision of the configuration."""
        is_mixed = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed):
            return self.compiled(tokens)

    def step(self, should_stop) -> tuple[StepReport, bool]:
        """The next step and the evaluation that is due after it; whether to stop."""
        config, state, number = self.config, self.state, self.state.step + 1
        start = time.perf_counter()
        torch.manual_seed(_seed(config.seed, number, self.place.rank))
        nats, asked, tokens = self._gradients(number)
        is_told = torch.tensor(bool(should_stop and should_stop()), device=self.device)
        sums = self.place.add_up(torch.stack([nats, asked, tokens, is_told.double()]))
        self.place.add_up_gradients(self.parameters)
        nats, asked, tokens, told = sums.tolist()
        if not asked:
            raise ValueError(f"source={self.source.name!r}: batch {number - 1} asks for no token")
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        torch._foreach_div_(gradients, asked)
        norm = nn.utils.get_total_norm(gradients)
        self._check(number, nats, norm.item())
        if config.optimiser.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, config.optimiser.clip, norm)
        rate = learning_rate(number, config.steps, config.optimiser)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.step()
        state.step = number
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        ms = 1e3 * (time.perf_counter() - start)
        bits = nats / math.log(2) / asked
        evaluation = self._evaluation(number)
        report = StepReport(number, bits, rate, norm.item(), round(tokens), ms, evaluation)
        return report, bool(told)

    def _gradients(self, number: int) -> list[torch.Tensor]:
        """Add up the gradients of this process's tokens; its nats, asked tokens and tokens."""
        self.state.model.train()
        self.state.optimiser.zero_grad()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for part in micro_batches(self.source, "train", number - 1, **self.parts):
            logits = self.forward(part.inputs).float().flatten(0, 1)
            targets = part.targets.flatten()
            # The sum: what it is divided by is known once all processes have said how many
            # tokens are asked.
            loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            loss.backward()
            sums[0] += loss.detach()
            sums[1] += (targets != IGNORED).sum()
            sums[2] += targets.numel()
        return list(sums)

    def _check(self, number: int, nats: float, norm: float) -> None:
        if not (math.isfinite(nats) and math.isfinite(norm)):
            raise Diverged(
                f"step {number}: the loss is {nats:g} nats and the norm of the gradient {norm:g}; "
                "a lower training.optimiser.learning_rate or a longer warm-up may help"
            )

    def _evaluation(self, number: int) -> Evaluation | None:
        if number % self.config.evaluate_every and number != self.config.steps:
            return None
        self.state.model.eval()
        batches = self.config.evaluation_batches
        return evaluate(self.forward, self.source, step=number, batches=batches, **self.parts)


def _check_evaluation(config: TrainingConfig, source, place: Place) -> None:
    """ValueError where the source has less validation batches than are asked for."""
    try:
        source.batch("validation", config.evaluation_batches - 1, rows=place.rows)
    except ValueError as error:
        raise ValueError(f"evaluation_batches={config.evaluation_batches}: {error}") from None


def _seed(seed: int, step: int, rank: int) -> int:
    """64 bits of what a process draws in a step."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])
