"""`python -m experiments train`: its arguments, and how it ends. No torch before it runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments import console, machine, stop
from experiments.training import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "config", type=console.some_path, metavar="CONFIG", help="a YAML file: model, data, steps"
    )
    parser.add_argument(
        "--out",
        type=console.folder,
        required=True,
        metavar="FOLDER",
        help="of the checkpoints and metrics; one with a checkpoint is gone on with",
    )
    parser.add_argument(
        "--steps", type=_number, metavar="N", help="stop after step N of those in CONFIG"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a card"
    )


def train(options: argparse.Namespace) -> int:
    """Train, from the last checkpoint in the folder; returns the exit status."""
    asked = config.read(options.config)
    device = machine.choose_device(options.device)
    # Imported late: a configuration is refused at once, and the other commands need no torch.
    from experiments.training.run import run

    try:
        return run(asked, out=Path(options.out), device=device, until=options.steps)
    except stop.Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped by {stopped}: the same command goes on", file=sys.stderr)
        return stopped.status


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer >= 1")
    return int(text)
