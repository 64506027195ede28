"""`python -m analysis.training_curve FOLDER`: the loss of a training by its steps, as a figure."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from analysis.command import command, parser
from analysis.rendering import style
from experiments.console import some_path
from experiments.training import metrics


def draw(lines: list[dict]) -> Figure:
    """Loss of the batches and of the validation, in bits per token, by the step.

    lines: of a metrics.jsonl; ValueError where none is of a step.
    """
    if not lines:
        raise ValueError("no step yet")
    evaluated = [line for line in lines if "evaluation" in line]
    with style.style():
        figure = Figure(figsize=(style.COLUMN, 2.2), layout="constrained")
        ax = figure.subplots()
        steps, losses = zip(*((line["step"], line["loss"]) for line in lines), strict=True)
        ax.plot(steps, losses, color=style.GREY, linewidth=0.5, label="training, each batch")
        if evaluated:
            places = [line["step"] for line in evaluated]
            found = [line["evaluation"]["loss"] for line in evaluated]
            ax.plot(places, found, color="#0072B2", marker="o", label="validation")
        ax.set_xlabel("step")
        ax.set_ylabel("loss (bits per token)")
        ax.set_ylim(bottom=0)
        ax.legend()
    return figure


@command("training_curve", ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Write loss.svg, loss.png and loss.csv into the folder; print the first one's path."""
    asked = parser(__doc__)
    asked.add_argument("folder", type=some_path, metavar="FOLDER", help="of a training")
    folder: Path = asked.parse_args(arguments).folder
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"{path}: no such file; is {folder} the folder of a training?")
    print(style.save(draw(list(metrics.read(path))), folder / "loss.svg"))


if __name__ == "__main__":
    sys.exit(main())
