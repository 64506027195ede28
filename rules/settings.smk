# What `--config` says, which cases and records that means, and what stands in the report.
import math
import mimetypes
import os
import shlex
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from snakemake.io import report as in_report
from snakemake.logging import logger

from analysis.outputs import caption_path, captions, place, written
from analysis.rendering.text import FIGURE_FORMS, TABLE_FORMS
from experiments import console, cost
from experiments import grid as grids
from experiments import schedule, trusted
from experiments.campaign import value
from experiments.cost import hours
from experiments.digest import code_digest, modules_digest, reached
from experiments.record import RecordError
from experiments.rounds import current, is_done, name_of, well_placed
from experiments.runner import duration, failures, label

if Path.cwd().resolve() != Path(workflow.basedir).resolve():
    raise WorkflowError(
        f"--directory {Path.cwd()}: expected {Path(workflow.basedir).resolve()}, or none: "
        "it runs where its Snakefile is"
    )
# What jobs call is this environment's, whether or not it is activated.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)
console.in_any_locale()
# Or the report warns of each table.
mimetypes.add_type("text/plain", ".typ")

OPTIONS = {"source": "local", "tier": None, "rounds": None, "hours": None}
ON_WHAT = ["device", "partition", "gpu_model"]
for key in set(config) - {*OPTIONS, *ON_WHAT}:
    raise WorkflowError(
        f"--config {key}: expected one of {', '.join([*OPTIONS, *ON_WHAT])}"
    )
SOURCE, TIER, ROUNDS, HOURS = ({**OPTIONS, **config}[key] for key in OPTIONS)
if SOURCE not in ("local", "published"):
    raise WorkflowError(f"--config source={SOURCE}: expected local or published")


include: "devices.smk"


try:
    TIER, QUICK = grids.resolve("quick" if TIER is None else TIER, KIND)
    EXPERIMENTS = {name: grids.load(name) for name in grids.names()}
    TASKS = {task.name: task for task in grids.tasks(TIER, quick=QUICK)}
    VOUCHED = trusted.holding(Path("results/published"))
except (grids.GridError, RecordError) as error:
    raise WorkflowError(str(error)) from None
# One round says nothing of what changes from one to the next, and of the smoke tier nothing is said.
ROUNDS = (1 if TIER == "smoke" else 2) if ROUNDS is None else ROUNDS
if type(ROUNDS) is not int or not 1 <= ROUNDS <= 1000:
    raise WorkflowError(f"--config rounds={ROUNDS}: expected an integer from 1 to 1000")
ROUNDS = [name_of(number) for number in range(1, ROUNDS + 1)]
if HOURS is not None and not (type(HOURS) in (int, float) and 0 < HOURS < math.inf):
    raise WorkflowError(f"--config hours={HOURS}: expected a positive number")
if HOURS is not None and SOURCE == "published":
    raise WorkflowError(f"--config hours={HOURS}: source=published measures nothing")
# When this run did.
BEGAN = []
LOCAL = f"results/local/{HERE}"
PUBLISHED = well_placed(Path("results/published"))
WRITEUPS = glob_wildcards("paper/writeups/{name}.md.j2").name
# The folders that analysis reads, and whose numbers the prose gives.
ROOTS = ["results/published"] if PUBLISHED else []
ROOTS += [LOCAL] if SOURCE == "local" else []
# What the commands of the analysis are called by: they find imported and read what they share.
WARM = f"python -m analysis.warm {shlex.join(ROOTS)} --"
# Figures of all experiments.
ACROSS = ["overview", "scaling", "variation", "retest", "gauges"]
# Every case asks for its variant's.
digest = cache(code_digest)


def code_of(task):
    """The digest of the code that measures a case."""
    return digest(task.case.variant, task.procedure)


def of_round(round, experiment=None):
    """The records of a round: of an experiment, or of all."""
    return [
        f"{LOCAL}/{round}/{name}.json"
        for name, task in ASKED.items()
        if experiment is None or experiment in task.experiments
    ]


@cache
def turns(round):
    """The cases of a round, the first first, each with the devices that take it.

    Of all cases, so that a shape stays on its card where a limit leaves some to the next run.
    """
    seed, number = f"{machines.host().id} {round}", ROUNDS.index(round) + 1
    found = schedule.turns(TASKS.values(), seconds, len(DEVICES), seed, number)
    return {one.task.name: one for one in found}


@cache
def places(round):
    """The order of a round: the first has the highest number."""
    return {name: place for place, name in enumerate(reversed(turns(round)), start=1)}


@cache
def progress(round):
    """Where each case stands among all that is measured, and what is expected to be left then."""
    further = len(ROUNDS) - ROUNDS.index(round) - 1
    left = (1 + further) * sum(map(expected, ASKED))
    found = {}
    ordered = [name for name in turns(round) if name in ASKED]
    for place, name in enumerate(ordered, start=1):
        where = f"{round} of {len(ROUNDS)}, {place}/{len(ASKED)}"
        about = f"about {duration(left / len(DEVICES))} to measure"
        found[name] = f"{where}, {about}: {label(TASKS[name].case)}"
        left -= expected(name)
    return found


def about(wildcards):
    """A case and its place; to a cluster's jobs nothing, which share what is asked for in words."""
    return TIER if IS_CLUSTER else progress(wildcards.round)[wildcards.case]


def seconds(task):
    """What a case is expected to take here."""
    found = cost.seconds(task.case, task.limits, KIND, DEVICE_NAME, cards=CARDS)
    return found.total


@cache
def expected(name):
    """Device-seconds that a case is expected to take here: a ring takes those of all its cards."""
    return hours.expected_s(TASKS[name], KIND, DEVICE_NAME, CARDS)


def device_of(round, case):
    """What a case is measured on: of several cards its own, for what holds several the first on."""
    if len(DEVICES) == 1:
        return DEVICE
    held = turns(round)[case].devices
    return DEVICE if len(held) > 1 else DEVICES[held[0]]


def holds(round, case, place):
    """Whether a case holds the device of this place: 1 or 0."""
    return int(place in turns(round)[case].devices)


def within_hours():
    """What a limit leaves: all that is measured, and the most valuable cases that fit into it."""
    cost_of = {
        one.task.name: expected(one.task.name) * count
        for one in value.ordered(TIER)
        if (count := sum(one.task.name in names for names in WAITING.values()))
        and one.task.name in TASKS
    }
    limit = 3600 * HOURS * len(DEVICES)
    chosen = {*schedule.fitting(cost_of, limit)}
    left = [spent for name, spent in cost_of.items() if name not in chosen]
    told = f"hours={HOURS}: {len(chosen)} cases, the most valuable of those that fit"
    if not cost_of:
        told = f"hours={HOURS}: all {len(TASKS)} cases are measured"
    elif not chosen:
        told = f"hours={HOURS}: no case fits that is not measured yet"
    if left:
        told += f"; left out: {len(left)} cases, {hours.in_words(sum(left))}, of which the least "
        told += f"takes {duration(min(left))}"
    logger.warning(told)
    done = {name for name in TASKS if name not in cost_of}
    return {name: task for name, task in TASKS.items() if name in done | chosen}


def told_before():
    """What is still to be measured, in a line."""
    per_round = sum(expected(name) for names in WAITING.values() for name in names)
    count = sum(map(len, WAITING.values()))
    beside = "" if len(DEVICES) == 1 else f", on {len(DEVICES)} cards at the same time"
    return f"{count} cases to measure, {hours.in_words(per_round)} expected{beside}"


def told_after(began):
    """What was measured since then, beside what was expected of it."""
    paths = [Path(path) for round in ROUNDS for path in of_round(round)]
    spent = hours.measured(paths, began)
    return hours.comparison(spent.values(), (expected(path.stem) for path in spent))


def failed_cases():
    """A line for each case of these rounds that the next run measures again."""
    return [
        line
        for round in ROUNDS
        for line in failures(ASKED.values(), map(Path, of_round(round)))
    ]


def round_before(round, case):
    """What says that the round before one is complete; nothing where it need not be."""
    # Snakemake is told here, before it plans: it knows only of records that it made itself.
    workflow.dag.forcefiles.update(AGAIN)
    before = dict(zip(ROUNDS[1:], ROUNDS))
    if round not in before:
        return []
    complete = f"build/logs/{before[round]}.complete"
    # It looks at no job behind one that is to run, but for what that one makes.
    is_forced = f"{LOCAL}/{round}/{case}.json" in AGAIN
    return complete if is_forced else ancient(complete)


def local_records(name):
    """The records that this machine measures for an experiment."""
    if SOURCE == "published":
        return []
    return [path for round in ROUNDS for path in of_round(round, name)]


def records(name):
    """The records that an experiment's notebook reads: published by any machine, and local."""
    tiers = EXPERIMENTS[name].tiers.values()
    own = {case.name for tier in tiers for case in tier.cases}
    published = [path for path in PUBLISHED if path.stem in own]
    further = [path for path in FURTHER if path.stem in own]
    return [*map(str, published), *local_records(name), *map(str, further)]


def speaks(path):
    """Whether somebody vouches for a record, or this machine measured it."""
    path = Path(path)
    return not path.is_relative_to("results/published") or path.parts[2:4] in VOUCHED


def read_by(name):
    """The experiments whose records a notebook reads: its own, and those that its code imports."""
    folders = {
        path.parent for path in reached([f"analysis.experiments.{name}.contents"])
    }
    beside = {
        one.name
        for one in folders
        if one.parent == Path("analysis/experiments").resolve()
    }
    return [name, *(other for other in EXPERIMENTS if other in beside - {name})]


def shown(path, caption, category, subcategory=None, **labels):
    """An output under build/ that stands in `snakemake --report`."""
    caption = f"../paper/captions/{caption}.rst"
    return in_report(
        f"build/{path}",
        caption=caption,
        category=category,
        subcategory=subcategory,
        labels=labels,
    )


def of_records(module, *data):
    """A digest of what a module makes of the records of all experiments."""
    data = [*data, "analysis/experiments/*/layout.yaml", "experiments/*.yaml"]
    return modules_digest(f"analysis.{module}", data=data)


# Of the rounds that are asked for, what is still to be measured.
WAITING = {
    round: {
        name
        for name, task in TASKS.items()
        if not is_done(
            Path(f"{LOCAL}/{round}/{name}.json"), task.case, task.procedure, digest
        )
    }
    for round in (ROUNDS if SOURCE == "local" else [])
}
try:
    ASKED = TASKS if HOURS is None else within_hours()
except value.ValueFileError as error:
    raise WorkflowError(str(error)) from None
WAITING = {
    round: {name for name in names if name in ASKED} for round, names in WAITING.items()
}
# What was measured beyond what is asked for, as by `make round`, is read as well.
FURTHER = []
# Records of other code, and failures whose cause was the day: these are measured again. Nothing is
# moved here, where dry runs come too.
AGAIN = set()
if SOURCE == "local":
    local_rounds = {*ROUNDS, *(path.name for path in Path(LOCAL).glob("round-*"))}
    for path in (Path(f"{LOCAL}/{round}") for round in sorted(local_rounds)):
        for task in TASKS.values():
            record = path / f"{task.name}.json"
            if not record.exists():
                continue
            if path.name not in ROUNDS or task.name not in ASKED:
                if current(record, task.case, task.procedure, digest):
                    FURTHER.append(record)
            elif task.name in WAITING[path.name]:
                AGAIN.add(str(record))

# A new experiment has no published records yet: nothing of it can be built, all else can.
for name in [name for name in EXPERIMENTS if not any(map(speaks, records(name)))]:
    logger.warning(f"{name}: left out, it has no record here")
    del EXPERIMENTS[name]
    WRITEUPS = [writeup for writeup in WRITEUPS if writeup != name]

for name in EXPERIMENTS:
    if not Path(f"analysis/notebooks/{name}.ipynb").exists():
        raise WorkflowError(
            f"experiments/{name}.yaml: needs analysis/notebooks/{name}.ipynb"
        )
