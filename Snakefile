# Grids -> one job a case -> records -> notebooks -> figures, tables, numbers,
# verdicts -> paper and write-ups. Rules are thin: what they call runs without
# Snakemake too. `snakemake` measures on this machine and does all of it;
# `snakemake --config source=published` starts from the records in the repository.
import pandas as pd
from snakemake.utils import Paramspace, min_version

from experiments import grid as grids
from experiments import machine as machines
from experiments.digest import code_digest, files_digest

min_version("9.19")

OPTIONS = {"source": "local", "tier": machines.default_tier(), "device": None}
for key in set(config) - set(OPTIONS):
    raise WorkflowError(f"--config {key}: expected one of {', '.join(OPTIONS)}")
SOURCE, TIER, DEVICE = ({**OPTIONS, **config}[key] for key in OPTIONS)
if SOURCE not in ("local", "published"):
    raise WorkflowError(f"--config source={SOURCE}: expected local or published")
DEVICE = machines.choose_device(DEVICE)
MACHINE = machines.describe(DEVICE).id
EXPERIMENTS = {name: grids.load(name) for name in grids.names()}
CASES = {name: grid.check_tier(TIER).cases for name, grid in EXPERIMENTS.items()}
LOCAL = f"results/local/{MACHINE}"
PUBLISHED = glob_wildcards("results/published/{record,.+}.json").record


def cases(name):
    """The cases of an experiment as a Paramspace: file names and wildcards."""
    grid = EXPERIMENTS[name]
    frame = pd.DataFrame([grid.params(case) for case in CASES[name]])
    return Paramspace(frame, filename_params="*", param_sep="-", filename_sep="_")


def records(name):
    """The records that an experiment's notebook reads: published by any machine, and local."""
    published = [f"results/published/{r}.json" for r in PUBLISHED if r.split("/")[1] == name]
    if SOURCE == "published":
        return published
    return published + [f"{LOCAL}/{name}/{case}.json" for case in cases(name).instance_patterns]


localrules:
    all,


rule all:
    input:
        [records(name) for name in EXPERIMENTS],


for name in EXPERIMENTS:

    rule:
        name:
            f"measure_{name}"
        message:
            "measuring {wildcards.variant} at {wildcards.seq_len} tokens"
        output:
            f"{LOCAL}/{name}/{cases(name).wildcard_pattern}.json",
        log:
            f"build/logs/{name}/{cases(name).wildcard_pattern}.log",
        params:
            experiment=name,
            case=lambda wildcards, output: Path(output[0]).stem,
            code=lambda wildcards: code_digest(wildcards.variant),
        conda:
            "envs/reproduce.yaml"
        # On a CPU the cores are the device: nothing else runs beside a measurement.
        threads: max(1, workflow.cores // max(1, len(machines.gpus())))
        resources:
            gpu=int(DEVICE != "cpu"),
        shell:
            "python -m experiments run {params.experiment} --tier {TIER} --device {DEVICE} --case {params.case}"
            " > {log} 2>&1"
