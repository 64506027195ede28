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
from snakemake.shell import shell

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
ON_WHAT = ["device", "partition", "gpu_model", "machine_type"]
for key in set(config) - {*OPTIONS, *ON_WHAT}:
    raise WorkflowError(
        f"--config {key}: expected one of {', '.join([*OPTIONS, *ON_WHAT])}"
    )
SOURCE, TIER, ROUNDS, HOURS = ({**OPTIONS, **config}[key] for key in OPTIONS)
if SOURCE not in ("local", "published"):
    raise WorkflowError(f"--config source={SOURCE}: expected local or published")
# To read all records takes longer than to plan, on another core: it begins before anything else.
if (
    SOURCE == "published"
    and workflow.is_main_process
    and not workflow.output_settings.dryrun
    and not Path("build/logs/records.complete").exists()
):
    shell("python -m analysis.warm results/published --")


include: "devices.smk"
include: "order.smk"
include: "costs.smk"


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
# Figures of all experiments.
ACROSS = ["overview", "scaling", "variation", "retest", "gauges"]
# Every case asks for its variant's.
digest = cache(code_digest)


def warm(command):
    """The shell line of a command of the analysis: it finds imported and read what all share."""
    return f"python -m analysis.warm {shlex.join(ROOTS)} -- {command}"


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


@cache
def records(name):
    """The records that an experiment's notebook reads: published by any machine, and local."""
    tiers = EXPERIMENTS[name].tiers.values()
    own = {case.name for tier in tiers for case in tier.cases}
    published = [path for path in PUBLISHED if path.stem in own]
    further = [path for path in FURTHER if path.stem in own]
    return [*map(str, published), *local_records(name), *map(str, further)]


@cache
def shares():
    """Of each experiment, its share of the records that notebooks read."""
    counts = {name: len(records(name)) for name in EXPERIMENTS}
    return {
        name: count / max(sum(counts.values()), 1) for name, count in counts.items()
    }


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
