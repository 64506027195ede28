"""`python -m experiments`: list, plan, run, publish, compare, validate experiments; tune; train."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Ctrl-C ends the imports below without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import json
import math
import shlex
import sys
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from experiments import console, cost, machine, rounds, runner, schedule, stop
from experiments import grid as grids
from experiments.campaign import value
from experiments.campaign.command import add_arguments, campaign
from experiments.cards import DeviceError
from experiments.cost import hours
from experiments.device_lock import hold
from experiments.digest import code_digest
from experiments.record import RecordError
from experiments.training import train_command
from models.kernels.tile_tables import HOME

# Failed cases that are named.
_SHOWN = 10
# The exit status where cases failed: 1 is that of whatever breaks.
FAILED = 3


@console.printing
def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for bad input, with a message of one line)."""
    options = _parser().parse_args(arguments)
    stop.raise_when_told()
    try:
        return options.command(options)
    except BrokenPipeError:
        raise
    except (grids.GridError, RecordError, DeviceError, ValueError, OSError) as error:
        print(f"error: {console.in_words(error)}", file=sys.stderr)
        return 2
    except stop.Stopped as stopped:
        given = shlex.join(_goes_on(options, sys.argv[1:] if arguments is None else arguments))
        # A terminal that was closed takes no text.
        with contextlib.suppress(OSError):
            print(
                f"stopped by {stopped}: what was measured is kept; to go on: "
                f"python -m experiments {given}",
                file=sys.stderr,
            )
        return stopped.status


def _goes_on(options, arguments: list[str]) -> list[str]:
    """The arguments of the command that goes on with one that was stopped."""
    if options.command is not campaign:
        return arguments
    resume = [] if options.resume else ["--resume"]
    is_named = any(one.partition("=")[0] == "--out" for one in arguments)
    where = [] if is_named or not options.out else ["--out", str(options.out)]
    return [*arguments, *resume, *where]


def _list(options) -> int:
    for name in grids.names():
        grid = grids.load(name)
        counts = ", ".join(f"{t.name} {len(t.cases)}" for t in grid.tiers.values())
        print(f"{name:16} {grid.title} (cases: {counts})")
    return 0


def _plan(options) -> int:
    if options.rounds and options.round:
        raise ValueError("--rounds: expected alone, without --round")
    device = machine.choose_device(options.device)
    here, reference = machine.describe(device), None
    kind, name = here.device_kind, here.device
    tier, tasks = _selected(options, kind)
    if tier == "gpu" and kind == "cpu":
        kind, name, reference = "cuda", "", cost.reference_device("cuda")
    number = options.round or rounds.first_open(options.out, here, tasks)
    print(f"{rounds.name_of(number)} ({tier}) on {here.id}")
    count = 1 if reference else len(schedule.devices(device))
    expected = [cost.seconds(task.case, task.limits, kind, name, cards=count) for task in tasks]
    digest = cache(code_digest)
    for task, one in zip(tasks, expected, strict=True):
        path = rounds.path_of(options.out, here.id, rounds.name_of(number), task.case)
        is_done = rounds.is_done(path, task.case, task.procedure, digest)
        state = "done   " if is_done else "measure"
        status = "" if one.status == "ok" else f" ({one.status})"
        print(f"  {state} {runner.label(task.case)}  {task.name}")
        print(f"          about {one.total:.1f} s{status}, for {', '.join(task.experiments)}")
    wanted = options.rounds or 1
    total, last = _time(tasks, kind, name, count)
    several = "" if wanted == 1 else f"; {wanted} rounds {_words(wanted * total)}"
    print(f"  {len(tasks)} cases, about {_words(total)}{several}")
    if count > 1:
        print(f"  on {count} cards about {runner.duration(wanted * last)}")
    if not options.only and not options.case:
        print(_tiers_table([options.name] if options.name else grids.names(), kind, name, count))
    if reference:
        print(f"no GPU here: expected times are those of the reference card, {reference}")
    return 0


def _time(tasks: list[grids.Task], kind: str, name: str, count: int) -> tuple[float, float]:
    """Expected seconds of a round: of devices, and on `count` of them until the last one ends."""

    def seconds(task: grids.Task) -> float:
        return cost.seconds(task.case, task.limits, kind, name, cards=count).total

    total = math.fsum(hours.expected_s(task, kind, name, count) for task in tasks)
    return total, schedule.wall_s(schedule.turns(tasks, seconds, count, "plan", 1))


def _words(seconds: float) -> str:
    """Seconds of devices, as hours where they are hours."""
    return runner.duration(seconds) if seconds < 3600 else hours.in_words(seconds)


def _tiers_table(names: list[str], kind: str, name: str, count: int) -> str:
    """Cases and expected time of a round, per experiment and size; of gpu, on a GPU.

    Time of the device; where there are several cards, below it that on so many.
    """
    # A CPU takes days for the lengths of the gpu tier: the reference card stands in.
    card = ("cuda", "") if kind == "cpu" else (kind, name)
    sizes = {"smoke": ("smoke", False, kind, name)}
    if kind == "cpu":
        sizes |= {size: ("laptop", size == "quick", kind, name) for size in ("quick", "full")}
    sizes |= {f"{size}, gpu": ("gpu", size == "quick", *card) for size in ("quick", "full")}
    # A case of several experiments is measured once.
    rows = {one: [one] for one in names} | ({"all": names} if len(names) > 1 else {})
    lines = [f"{'expected time':16}" + "".join(f"{size:>30}" for size in sizes)]
    for row, experiments in rows.items():
        cells, beside = "", ""
        for tier, quick, *on in sizes.values():
            tasks = grids.tasks(tier, experiments, quick=quick)
            total, last = _time(tasks, *on, count)
            cells += f"{f'{len(tasks)} cases, {_words(total)}':>30}"
            beside += f"{runner.duration(last):>30}"
        lines.append(f"{row:16}{cells}")
        if count > 1:
            lines.append(f"{f'  on {count} cards':16}{beside}")
    if kind == "cpu":
        lines.append(f"(gpu: on the reference card, {cost.reference_device('cuda')})")
    return "\n".join(lines)


def _run(options) -> int:
    if options.rounds and (options.round or options.budget):
        raise ValueError("--rounds: expected alone, without --round and --budget")
    tick = stop.check_stop()
    device = machine.choose_device(options.device)
    here = machine.describe(device)
    if options.machine not in (None, here.id):
        raise DeviceError(f"--machine {options.machine}: this is {here.id}")
    kind, name = here.device_kind, here.device
    tier, tasks = _selected(options, kind)
    count, began = len(schedule.devices(device)), datetime.now(UTC)
    expected = {task.name: hours.expected_s(task, kind, name, count) for task in tasks}
    total = math.fsum(expected.values())
    text = f"{len(tasks)} cases ({tier}), expected to take {runner.duration(total)} per round"
    text += f", {hours.in_words(total * (options.rounds or 1))} where none is measured yet"
    print(text, file=sys.stderr, flush=True)
    if options.budget:
        rank = {one.task.name: one.rank for one in value.ordered(tier)}
        tasks.sort(key=lambda task: rank[task.name])
    numbers, failed = range(1, options.rounds + 1) if options.rounds else [options.round], []
    spent = {}
    for place, number in enumerate(numbers, start=1):
        paths = runner.run(
            tasks,
            tier,
            device=device,
            out=options.out,
            round_=rounds.name_of(number) if number else None,
            rounds_after=len(numbers) - place,
            budget_s=options.budget,
            tick=tick,
        )
        failed += runner.failures(tasks, paths)
        spent |= hours.measured(paths, began)
    told = hours.comparison(spent.values(), (expected[path.stem] for path in spent))
    print(told, file=sys.stderr, flush=True)
    if failed:
        # The last lines: what a person looks at.
        left = [f"and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
        print(*failed[:_SHOWN], *left, sep="\n", file=sys.stderr)
        count = f"{len(failed)} of {len(numbers) * len(tasks)} cases failed"
        print(f"{count}; the same command measures them again", file=sys.stderr)
    return FAILED if failed else 0


def _publish(options) -> int:
    _need_pydantic("publish")
    if _is_archive(options.path):
        from experiments.publish_archive import publish_archive

        return publish_archive(options.path, take_tiles=options.tiles)
    if options.tiles:
        raise ValueError(f"--tiles: {options.path} is no archive of a campaign")
    from experiments.publish import publish

    folders = Counter(path.parent for path in publish(options.path))
    for folder, count in folders.items():
        print(f"{folder}: {count} published")
    return 0


def _compare(options) -> int:
    from analysis.comparison import report

    found = report.compare(options.a, options.b)
    if options.page:
        from analysis.pages import comparison_page

        comparison_page.save([found], options.page)
        print(options.page)
    else:
        print(report.text(found))
    return 0


def _validate(options) -> int:
    _need_pydantic("validate")
    if _is_archive(options.path):
        from experiments.publish_archive import validate_archive

        valid, problems = validate_archive(options.path)
    else:
        from experiments.publish import validate

        valid, problems = validate(options.path)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{valid} records valid, {len(problems)} not")
    return 1 if problems else 0


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.suffix != ".json"


def _need_pydantic(command: str) -> None:
    try:
        import pydantic  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(
            f"{command}: needs pydantic, which is not here: use the environment of "
            "envs/pipeline.txt, which `make paper` sets up in .venv"
        ) from None


def _machine(options) -> int:
    device = machine.choose_device(options.device)
    found = machine.describe(device).to_json()
    print(json.dumps({**found, "devices": len(schedule.devices(device))}, indent=1))
    return 0


def _schema(options) -> int:
    _need_pydantic("schema")
    from experiments.schema import json_schema

    print(json_schema(), end="")
    return 0


def _tune(options) -> int:
    device = machine.choose_device(options.device)
    if not device.startswith("cuda"):
        raise DeviceError("tune: needs a CUDA GPU; there is only the CPU")
    from experiments.tuning.plan import plan
    from models.errors import check_choice
    from models.kernels.calls import TABLES

    for table in options.table:
        check_choice("TABLE", table, TABLES)
    # The lock shows one card alone, so that it is "cuda" to torch, which must not have
    # looked before.
    with hold(device):
        from experiments.tuning.clocks import OnCard, card_at_hand
        from experiments.tuning.tune import tune

        capability, name = card_at_hand()
        tune(
            plan(options.table or TABLES),
            folder=options.out,
            seconds=60 * options.minutes,
            clock=OnCard(name),
            capability=capability,
        )
    return 0


def _selected(options, device_kind: str) -> tuple[str, list[grids.Task]]:
    """The tier and those of its cases that are asked for; errors come before any work."""
    if sum((bool(options.name), options.all, bool(options.case and not options.name))) != 1:
        raise ValueError("give the name of one experiment, --all, or one --case")
    tier, quick = grids.resolve(options.tier, device_kind)
    names = [options.name] if options.name else None
    tasks = grids.tasks(tier, names, quick=quick and not options.case)
    tasks = runner.select(tasks, runner.parse_only(options.only))
    if options.case:
        tasks = [task for task in tasks if task.name == options.case]
    if not tasks:
        raise ValueError(f"{options.name or 'all experiments'} ({options.tier}): no case matches")
    return tier, tasks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, help):
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    command("list", _list, "the experiments, and how many cases each tier has")
    for name, function, help in (
        ("plan", _plan, "the cases of an experiment, and which are still to measure"),
        ("run", _run, "measure a round of an experiment's cases and write a record each"),
    ):
        sub = command(name, function, help)
        sub.add_argument(
            "name", nargs="?", type=console.some_text, metavar="NAME", help="an experiment"
        )
        sub.add_argument("--all", action="store_true", help="every experiment")
        sub.add_argument(
            "--tier",
            default="quick",
            choices=list(dict.fromkeys((*grids.SIZES, *grids.TIERS))),
            help="quick (the default) or full, of gpu with a GPU and else of laptop",
        )
        sub.add_argument("--only", action="append", default=[], metavar="K=V", help="filter cases")
        sub.add_argument("--case", type=console.some_text, help="one case, by its name")
        sub.add_argument(
            "--round", type=_number, metavar="N", help="default: the first that is not complete"
        )
        sub.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:INDEX or stand-in")
        sub.add_argument(
            "--out",
            type=console.folder,
            default=runner.LOCAL,
            help="folder of records (results/local)",
        )
        sub.add_argument(
            "--rounds", type=_number, metavar="N", help="the first N, one after the other"
        )
        if name == "run":
            sub.add_argument(
                "--budget", type=_seconds, metavar="S", help="seconds; most valuable cases first"
            )
            sub.add_argument("--machine", metavar="ID", help="an error on any other machine")
    sub = command("publish", _publish, "validate records and copy them to results/published")
    sub.add_argument(
        "path",
        nargs="?",
        type=console.some_path,
        default=runner.LOCAL,
        metavar="PATH",
        help="a folder of records (results/local), all or none; or a campaign's .tar.xz",
    )
    sub.add_argument(
        "--tiles", action="store_true", help="put the archive's tile tables in models/kernels"
    )
    sub = command(
        "compare", _compare, "what differs between two machines or rounds, and ratios by case"
    )
    sub.add_argument(
        "a", type=console.some_path, metavar="A", help="a folder of records, or a machine's id"
    )
    sub.add_argument("b", type=console.some_path, metavar="B", help="another")
    sub.add_argument(
        "--page", type=console.some_path, metavar="FILE", help="write an HTML page, not text"
    )
    sub = command("validate", _validate, "check records against the schema")
    sub.add_argument(
        "path",
        type=console.some_path,
        metavar="PATH",
        help="a record, a folder of records, or an archive",
    )
    sub = command("tune", _tune, "pick the tiles of our kernels on this GPU and write their tables")
    sub.add_argument("table", nargs="*", metavar="TABLE", help="of a kernel; default: every one")
    sub.add_argument("--device", metavar="DEVICE", help="cuda or cuda:INDEX")
    sub.add_argument(
        "--minutes", type=_positive, default=float("inf"), metavar="M", help="default: no limit"
    )
    sub.add_argument(
        "--out",
        type=console.folder,
        default=HOME,
        metavar="FOLDER",
        help="of tables (models/kernels)",
    )
    sub = command(
        "campaign", campaign, "a device for so many minutes: check, time, tune, measure, pack"
    )
    add_arguments(sub)
    sub = command("train", train_command.train, "train a language model; the same again goes on")
    train_command.add_arguments(sub)
    sub = command("machine", _machine, "the machine and the device that would be measured, as JSON")
    sub.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:INDEX or stand-in")
    command("schema", _schema, "the JSON schema of records, as kept in record.schema.json")
    return parser


def _seconds(text: str) -> float:
    return _above_0(text, float, "a positive number of seconds")


def _number(text: str) -> int:
    return _above_0(text, int, "an integer >= 1")


def _positive(text: str) -> float:
    return _above_0(text, float, "a positive number")


def _above_0(text: str, kind: type, expected: str):
    with contextlib.suppress(ValueError):
        if (value := kind(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text}: expected {expected}")


if __name__ == "__main__":
    sys.exit(main())
