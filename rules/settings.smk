# What `--config` says, which cases and records that means, and what stands in the report.
import mimetypes
from functools import cache
from pathlib import Path

import pandas as pd
from snakemake.io import report as in_report
from snakemake.logging import logger
from snakemake.utils import Paramspace

from analysis.outputs import caption_path, captions, place, written
from analysis.rendering.text import TABLE_FORMS
from experiments import grid as grids
from experiments import machine as machines
from experiments.digest import code_digest, modules_digest, reached
from experiments.runner import set_aside_outdated

# Or the report warns of each table.
mimetypes.add_type("text/plain", ".typ")

OPTIONS = {"source": "local", "tier": None, "device": None}
for key in set(config) - set(OPTIONS):
    raise WorkflowError(f"--config {key}: expected one of {', '.join(OPTIONS)}")
SOURCE, TIER, DEVICE = ({**OPTIONS, **config}[key] for key in OPTIONS)
if SOURCE not in ("local", "published"):
    raise WorkflowError(f"--config source={SOURCE}: expected local or published")
try:
    DEVICE = machines.choose_device(DEVICE)
    TIER = TIER or machines.default_tier(DEVICE)
    EXPERIMENTS = {name: grids.load(name) for name in grids.names()}
    CASES = {name: grid.check_tier(TIER).cases for name, grid in EXPERIMENTS.items()}
except (grids.GridError, machines.DeviceError) as error:
    raise WorkflowError(str(error)) from None
LOCAL = f"results/local/{machines.describe(DEVICE).id}"
PUBLISHED = glob_wildcards("results/published/{record,.+}.json").record
WRITEUPS = glob_wildcards("paper/writeups/{name}.md.j2").name
# The folders that analysis reads, and whose numbers the prose gives.
ROOTS = ["results/published"] if PUBLISHED else []
ROOTS += [LOCAL] if SOURCE == "local" else []
# Every case asks for its variant's.
code_digest = cache(code_digest)


def cases(name):
    """The cases of an experiment: their file names and wildcards."""
    rows = [EXPERIMENTS[name].params(case) for case in CASES[name]]
    return Paramspace(
        pd.DataFrame(rows), filename_params="*", param_sep="-", filename_sep="_"
    )


def local_records(name):
    """The records that this machine measures for an experiment."""
    if SOURCE == "published":
        return []
    return [
        f"{LOCAL}/{name}/{EXPERIMENTS[name].file_name(case)}.json"
        for case in CASES[name]
    ]


def records(name):
    """The records that an experiment's notebook reads: published by any machine, and local."""
    published = [
        f"results/published/{r}.json" for r in PUBLISHED if r.split("/")[-2] == name
    ]
    return published + local_records(name)


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


# A new experiment has no published records yet: nothing of it can be built, all else can.
for name in [name for name in EXPERIMENTS if not records(name)]:
    logger.warning(f"{name}: left out, it has no record here")
    del EXPERIMENTS[name]
    WRITEUPS = [writeup for writeup in WRITEUPS if writeup != name]

for name in EXPERIMENTS:
    if not Path(f"analysis/notebooks/{name}.ipynb").exists():
        raise WorkflowError(
            f"experiments/{name}.yaml: needs analysis/notebooks/{name}.ipynb"
        )
    for path, case in zip(local_records(name), CASES[name]):
        procedure = EXPERIMENTS[name].procedure(case.variant)
        set_aside_outdated(Path(path), case, procedure)
