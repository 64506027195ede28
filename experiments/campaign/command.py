"""`python -m experiments campaign`: its arguments, checked before any work."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime

from experiments import console, cost, grid, machine
from experiments.campaign.clock import Clock
from experiments.campaign.folder import CampaignError
from experiments.cards import name_of, pool
from experiments.digest import ROOT

# What a rehearsal needs on two cores.
_REHEARSAL_MINUTES = 2.5
_LEAST_MINUTES = 0.25
_LOCAL = ROOT / "build" / "campaigns"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--minutes", type=float, metavar="M", help="of this call, all in all")
    parser.add_argument("--out", type=console.folder, metavar="DIR", help="folder of the campaign")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:INDEX")
    parser.add_argument("--resume", action="store_true", help="go on with the campaign in DIR")
    parser.add_argument(
        "--rehearse", action="store_true", help="all of it on a CPU, in tiny shapes"
    )
    parser.add_argument("--plan", action="store_true", help="print what it would do, and stop")


def campaign(options: argparse.Namespace) -> int:
    """Run, rehearse or plan a campaign; returns the exit status."""
    minutes = options.minutes
    if minutes is None:
        if not options.rehearse:
            raise CampaignError("--minutes: say how long the device is yours")
        minutes = _REHEARSAL_MINUTES
    if not _LEAST_MINUTES <= minutes < 1e5:
        raise CampaignError(f"--minutes {minutes:g}: expected at least {_LEAST_MINUTES:g}")
    if options.rehearse and options.device not in (None, "cpu"):
        raise CampaignError(f"--device {options.device}: a rehearsal is on the CPU")
    if options.plan:
        return _plan(options, minutes)
    clock = Clock(60 * minutes)
    # Imported late: the other commands need nothing of the kernels.
    from experiments.campaign import work

    if options.rehearse:
        # Before Triton is imported, whose own functions are made for one or the other.
        os.environ["TRITON_INTERPRET"] = "1"
        chosen = work.rehearsal()
    else:
        device = machine.choose_device(options.device)
        chosen = work.on_device(
            device, grid.resolve("full", "cpu" if device == "cpu" else "cuda")[0]
        )
    if options.resume and options.out is None:
        raise CampaignError("--resume: name the campaign's folder by --out")
    # Imported here: what runs needs torch, a plan does not.
    from experiments.campaign import run

    now = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    kind = "rehearsal" if options.rehearse else "campaign"
    # Who is told how to go on is told where.
    options.out = out = options.out or _LOCAL / f"{kind}-{now}"
    folder = run.begin(out, chosen, is_rehearsal=options.rehearse, resume=options.resume)
    run.run(folder, chosen, clock)
    print(folder.archive)
    return 0


def _plan(options, minutes: float) -> int:
    from experiments.campaign import planning, work

    if options.rehearse:
        chosen, kind, name = work.rehearsal(), "cpu", "this CPU"
    else:
        # A plan for a card can be read where there is none.
        device = options.device or "cuda"
        here = device in ("cpu", *(name_of("cuda", card) for card in pool("cuda")))
        kind = "cpu" if device == "cpu" else "cuda"
        is_known = here or (device == "cuda" and pool("cuda"))
        name = machine.describe(device).device if is_known else cost.reference_device(kind)
        chosen = work.on_device(
            device, grid.resolve("full", "cpu" if device == "cpu" else "cuda")[0]
        )
    print(planning.text(chosen, kind, name, minutes))
    return 0
