"""A training from its configuration to its folder, in one process or in each of torchrun's."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist

from experiments import machine, provenance, stop
from experiments.digest import modules_digest
from experiments.training import checkpoint, parallel, sources
from experiments.training.config import RunConfig
from experiments.training.folder import Folder
from experiments.training.loop import StepReport, train
from experiments.training.model import language_model
from experiments.training.progress import Progress
from experiments.training.state import TrainingState
from models.longnet import LongNetLM
from models.registry import VARIANTS

_HAS_SAFETENSORS = find_spec("safetensors") is not None


def run(config: RunConfig, *, out: Path, device: str, until: int | None = None) -> int:
    """Train a LongNet language model, from the last checkpoint in `out`.

    Of several processes the first one writes; all of them must see the folder.

    Args:
        config: of the whole run.
        out: the folder, see `experiments.training.folder`.
        device: "cpu" or "cuda".
        until: the step to stop after, if it is before the last one.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: on a bad configuration, or a folder of another one, before any work.
        stop.Stopped: after a signal; the last step is in a checkpoint.
    """
    source = sources.build(config.data)
    model_config = language_model(config, source)
    order = VARIANTS[model_config.attention].shard_order
    check_place(config, parallel.launched_ranks(), order)
    # A process's first logarithms, on several threads at once, are not always those of the next.
    torch.full((64,), 2.0).log()
    parallel.join(device)
    try:
        place = parallel.of_this_process(device, config.parallel.context, config.data.batch, order)
        torch.manual_seed(config.training.seed)
        # On the CPU first: the same weights whatever the device.
        model = LongNetLM(model_config, group=place.group).to(device)
        with stop.deferred():
            _in_folder(config, Folder(out), source, model, place, device, until)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return 0


def check_place(config: RunConfig, ranks: int, order: str | None) -> None:
    """Check that processes can share the work of a configuration.

    Args:
        config: of the whole run.
        ranks: processes in all.
        order: the shard order of the variant; None where it takes whole rows.

    Raises:
        ValueError: naming what does not divide.
    """
    context, batch = config.parallel.context, config.data.batch
    parallel.check(ranks, context, batch, order)
    rows, micro = batch // (ranks // context), config.training.micro_batch
    if micro is not None and rows % micro:
        raise ValueError(
            f"training.micro_batch={micro}: expected a divisor of a process's {rows} rows"
        )


def _in_folder(config, folder: Folder, source, model, place, device, until) -> None:
    """Train from the folder's last checkpoint; write the next ones, the lines and the model."""
    count = sum(one.numel() for one in model.parameters())
    content = {"config": config.to_json(), "data": source.description, "parameters": count}
    path = place.by_the_first(lambda: folder.begin(content))
    resume = checkpoint.load(path) if path else None
    begun, steps = resume["step"] if resume else 0, config.training.steps
    last = steps if until is None else min(until, steps)
    progress = Progress(sys.stderr, steps)
    if place.is_first:
        progress.say(f"{count:,} weights, {steps} steps of {source.name}, {begun} done")
        folder.times.append({"step": begun, "started": _what_runs(config, place, device)})
        if not _HAS_SAFETENSORS:
            progress.say("safetensors is not here: the weights are kept in checkpoints only")

    def on_step(report: StepReport, state: TrainingState) -> None:
        if place.is_first:
            folder.add(report)
            progress.add(report)
            if report.step % config.output.checkpoint_every == 0:
                folder.save(state.to_dict())

    try:
        result = train(
            config.training,
            source=source,
            model=model,
            place=place,
            resume=resume,
            on_step=on_step,
            until=last,
            should_stop=lambda: stop.told() is not None,
        )
        if place.is_first:
            _finish(config, folder, progress, result)
    finally:
        progress.close()
        folder.close()
    if result.state.step < last and stop.told() is None:
        # Another process was told to stop, and this one may not have been.
        raise stop.Stopped(signal.SIGTERM)


def _finish(config: RunConfig, folder: Folder, progress: Progress, result) -> None:
    """The last checkpoint, the model, and what can be done next."""
    step = result.state.step
    if result.reports and step % config.output.checkpoint_every:
        folder.save(result.state.to_dict())
    if not result.is_complete:
        progress.say(f"{folder.path}: stopped after step {step} of {config.training.steps}")
        return
    if _HAS_SAFETENSORS:
        result.state.model.save(folder.model)
    progress.say(
        f"{folder.path}: complete; python -m analysis.training_curve {folder.path} draws the loss"
    )


def _what_runs(config: RunConfig, place: parallel.Place, device: str) -> dict:
    """What the speed of a training depends on besides its configuration."""
    return {
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else machine.describe(device).cpu,
        "threads": torch.get_num_threads(),
        "ranks": place.ranks,
        "context": place.context,
        "precision": config.training.precision,
        "compile": config.training.compile,
        "software": provenance.software(modules_digest("experiments.training.run")),
    }
