"""The folder of a training: what it is, its checkpoints, its lines; one process writes at a time.

run.json           the configuration, the data's content and the number of weights
metrics.jsonl      one line per step, which these determine: the same bytes again, on a CPU
times.jsonl        one line per step with its milliseconds, one per start with what it ran on
checkpoints/       the last two
model/             the trained model, at the end
"""

from __future__ import annotations

import fcntl
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from experiments.atomic_write import atomic_write
from experiments.training import checkpoint
from experiments.training.config import digest
from experiments.training.loop import StepReport
from experiments.training.metrics import JsonLines

# Fields that differ and are named.
_SHOWN = 3


class Folder:
    """The folder of one training."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.metrics = JsonLines(self.path / "metrics.jsonl")
        self.times = JsonLines(self.path / "times.jsonl")
        self._lock = None

    def begin(self, run: dict) -> Path | None:
        """Make the folder that of a training, or find it to be, and cut it to its last checkpoint.

        Args:
            run: what makes the training what it is, as JSON values.

        Returns:
            The checkpoint to go on from; None at the beginning.

        Raises:
            ValueError: it is another training's, or another process writes to it. Nothing is
                changed then.
            OSError: where nothing can be written.
        """
        self._check(run)
        self.path.mkdir(parents=True, exist_ok=True)
        self._hold()
        with atomic_write(self.path / "run.json") as partial:
            text = json.dumps({"sha256": digest(run), "run": run}, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")
        # What a killed process was about to write; nobody else writes here now.
        for left in (*self.path.glob(".*.partial"), *self.checkpoints.glob(".*.partial")):
            left.unlink()
        step, path = next(reversed(checkpoint.all_in(self.checkpoints)), (0, None))
        for lines in (self.metrics, self.times):
            lines.cut(step)
        return path

    def _check(self, run: dict) -> None:
        path = self.path / "run.json"
        if not path.exists():
            if self.metrics.path.exists():
                raise ValueError(f"{self.path}: has a metrics.jsonl and no run.json beside it")
            return
        kept = None
        with suppress(ValueError, KeyError, TypeError):
            written = json.loads(path.read_text(encoding="utf-8"))
            kept = written["run"] if written["sha256"] == digest(written["run"]) else None
        if kept is None:
            raise ValueError(f"{path}: is not as a training wrote it")
        there, here = _flat(kept), _flat(run)
        differ = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        if differ:
            told = [
                f"{name} is {json.dumps(there.get(name))} there, {json.dumps(here.get(name))} here"
                for name in differ[:_SHOWN]
            ]
            told += [f"and {len(differ) - _SHOWN} fields more"] if len(differ) > _SHOWN else []
            raise ValueError(
                f"{self.path}: holds another training ({'; '.join(told)}); give another --out"
            )

    def _hold(self) -> None:
        """Keep others from writing here, until this process ends however it ends."""
        self._lock = (self.path / ".lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"{self.path}: another process is training there") from None

    def add(self, report: StepReport) -> None:
        """Write the lines of a step."""
        line = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
        }
        if report.evaluation:
            line["evaluation"] = asdict(report.evaluation)
        self.metrics.append(line)
        self.times.append({"step": report.step, "ms": report.ms})

    def save(self, state: dict) -> Path:
        """Write a checkpoint, after all lines up to it; returns its file."""
        for lines in (self.metrics, self.times):
            lines.sync()
        return checkpoint.save(self.checkpoints, state)

    def close(self) -> None:
        """Let others write here."""
        for lines in (self.metrics, self.times):
            lines.close()
        if self._lock is not None:
            self._lock.close()


def _flat(values: object, name: str = "") -> dict[str, object]:
    """The values of nested mappings by their dotted names."""
    if not isinstance(values, dict):
        return {name: values}
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= _flat(value, f"{name}.{key}" if name else key)
    return found
