# Grids -> one job a case -> records -> notebooks -> figures, tables, numbers and
# verdicts -> write-ups and paper. Rules are thin: all that they call runs without
# Snakemake too. A bare `snakemake` measures on this machine and does all of it;
# `snakemake --config source=published` starts from the records in the repository.
import mimetypes
from pathlib import Path

import pandas as pd
from snakemake.io import report as in_report
from snakemake.logging import logger
from snakemake.utils import Paramspace, min_version

from analysis.outputs import (
    caption_path,
    captions,
    place,
    written,
)
from analysis.rendering.text import TABLE_FORMS
from experiments import grid as grids
from experiments import machine as machines
from experiments.digest import code_digest, files_digest
from experiments.runner import set_aside_outdated

min_version("9.19")


report: "paper/captions/report.rst"


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
MACHINE = machines.describe(DEVICE).id
WRITEUPS = glob_wildcards("paper/writeups/{name}.md.j2").name
LOCAL = f"results/local/{MACHINE}"
PUBLISHED = glob_wildcards("results/published/{record,.+}.json").record
# The folders that analysis reads, and whose numbers the prose gives.
ROOTS = ["results/published"] if PUBLISHED else []
ROOTS += [LOCAL] if SOURCE == "local" else []
# What the analysis of records is made of, besides the records.
ANALYSIS = [
    "analysis/**/*.py",
    "analysis/rendering/*.mplstyle",
    "analysis/experiments/*/layout.yaml",
]
ANALYSIS += [
    f"experiments/{files}" for files in ("schema.py", "case.py", "grid.py", "*.yaml")
]
ANALYSIS += ["models/patterns/*.py", "models/registry.py", "paper/readings.yaml"]


def cases(name):
    """The cases of an experiment: their file names and wildcards."""
    rows = [EXPERIMENTS[name].params(case) for case in CASES[name]]
    return Paramspace(
        pd.DataFrame(rows), filename_params="*", param_sep="-", filename_sep="_"
    )


def local_records(name):
    """The records that this machine measures for an experiment."""
    if SOURCE == "published" or not CASES[name]:
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


def reported(name):
    """What an experiment's notebook writes, as it stands in `snakemake --report`."""
    # `report` at the head of a line is Snakemake's keyword, outside of rules.
    return [
        in_report(
            f"build/{path}", caption=f"build/{caption_path(path)}", **place(path, name)
        )
        for path in written(name)
    ]


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
        set_aside_outdated(Path(path), case)


rule all:
    input:
        [local_records(name) for name in EXPERIMENTS],
        "build/paper.pdf",
        expand("build/writeups/{name}.md", name=WRITEUPS),
        expand("build/notebooks/{name}.html", name=EXPERIMENTS),
        expand("build/figures/{figure}.svg", figure=["overview", "scaling"]),
        "build/ledger.html",
        "build/results.html",
        expand("build/tables/advice.{form}", form=TABLE_FORMS),
        [f"build/{path}" for name in EXPERIMENTS for path in captions(name)],


rule experiments:
    input:
        [local_records(name) for name in EXPERIMENTS],


for name in EXPERIMENTS:
    if local_records(name):

        rule:
            name:
                f"measure_{name}"
            output:
                f"{LOCAL}/{name}/{cases(name).wildcard_pattern}.json",
            log:
                f"build/logs/{name}/{cases(name).wildcard_pattern}.log",
            conda:
                "envs/reproduce.yaml"
            # On a CPU the cores are the device: nothing else runs beside a measurement.
            threads: max(1, workflow.cores // (len(machines.gpus()) if DEVICE != "cpu" else 1))
            resources:
                gpu=int(DEVICE != "cpu"),
            params:
                experiment=name,
                tier=TIER,
                device=DEVICE,
                case=lambda wildcards, output: Path(output[0]).stem,
                limits=str(EXPERIMENTS[name].tiers[TIER].limits),
                code=lambda wildcards: code_digest(wildcards.variant),
            message:
                "measuring {wildcards.variant} at {wildcards.seq_len} tokens"
            shell:
                "python -m experiments run {params.experiment} --tier {params.tier}"
                " --device {params.device} --case {params.case} > {log} 2>&1"

    rule:
        name:
            f"notebook_{name}"
        input:
            records=records(name),
            notebook=f"analysis/notebooks/{name}.ipynb",
            published="paper/claims.yaml",
        output:
            f"build/notebooks/{name}.ipynb",
            reported(name),
        log:
            f"build/logs/notebook_{name}.log",
        conda:
            "envs/reproduce.yaml"
        params:
            experiment=name,
            roots=ROOTS,
            code=files_digest(*ANALYSIS),
        message:
            "executing the notebook: its figures, tables and numbers"
        shell:
            "python -m analysis.notebook {params.experiment} {params.roots} > {log} 2>&1"

    rule:
        name:
            f"captions_{name}"
        input:
            f"analysis/notebooks/{name}.ipynb",
        output:
            [f"build/{path}" for path in captions(name)],
        log:
            f"build/logs/captions_{name}.log",
        conda:
            "envs/reproduce.yaml"
        params:
            experiment=name,
            code=files_digest("analysis/outputs.py", "analysis/rendering/text.py"),
        message:
            "what the report says of the notebook's figures and tables"
        shell:
            "python -m analysis.outputs {params.experiment} > {log} 2>&1"


rule notebook_page:
    input:
        "build/notebooks/{name}.ipynb",
    output:
        report(
            "build/notebooks/{name}.html",
            caption="paper/captions/notebook.rst",
            category="Notebooks",
            labels={"of": "{name}"},
        ),
    log:
        "build/logs/notebook_page_{name}.log",
    conda:
        "envs/reproduce.yaml"
    message:
        "the notebook {wildcards.name} as a page"
    shell:
        "jupyter nbconvert --to html --log-level WARN {input} > {log} 2>&1"


rule claims:
    input:
        records=[records(name) for name in EXPERIMENTS],
        claims="paper/claims.yaml",
    output:
        **{
            form: report(
                f"build/claims.{form}",
                caption="paper/captions/claims.rst",
                category="Claims",
                labels={"form": form},
            )
            for form in ("json", "csv")
        },
    log:
        "build/logs/claims.log",
    conda:
        "envs/reproduce.yaml"
    params:
        roots=ROOTS,
        code=files_digest(*ANALYSIS),
    message:
        "judging every published claim"
    shell:
        "python -m analysis.claims --claims {input.claims} --out {output.json}"
        " {params.roots} > {log} 2>&1"


rule ledger:
    input:
        "build/claims.json",
    output:
        report(
            "build/ledger.html",
            caption="paper/captions/ledger.rst",
            category="Claims",
            labels={"form": "page"},
        ),
    log:
        "build/logs/ledger.log",
    conda:
        "envs/reproduce.yaml"
    params:
        code=files_digest(
            "analysis/pages/ledger_page.py",
            "analysis/documents/writeups.py",
            "analysis/rendering/text.py",
            "analysis/pages/ledger.*",
        ),
    message:
        "every claim down to its records, as a page"
    shell:
        "python -m analysis.pages.ledger_page --claims {input} --out {output} > {log} 2>&1"


rule numbers:
    input:
        expand("build/numbers/{name}.json", name=EXPERIMENTS),
        "build/claims.json",
    output:
        report(
            "build/numbers.json",
            caption="paper/captions/numbers.rst",
            category="Numbers",
            subcategory="All",
            labels={"of": "all experiments"},
        ),
    log:
        "build/logs/numbers.log",
    conda:
        "envs/reproduce.yaml"
    params:
        code=files_digest("analysis/rendering/numbers.py"),
    message:
        "joining every number that the prose may use"
    shell:
        "python -m analysis.rendering.numbers --out {output} {input} > {log} 2>&1"


# From a number to its records, from a record to its command; and what all of it cost.
PROVENANCE = expand("{list}.csv", list=["numbers", "records"])
PROVENANCE += expand(
    "tables/provenance-{table}.{kind}",
    table=["machines", "costs", "code"],
    kind=TABLE_FORMS,
)


rule provenance:
    input:
        records=[records(name) for name in EXPERIMENTS],
        numbers="build/numbers.json",
    output:
        [
            in_report(
                f"build/{path}",
                caption="paper/captions/provenance.rst",
                category="Numbers",
                subcategory="Provenance",
                labels={"of": Path(path).stem, "form": Path(path).suffix[1:]},
            )
            for path in PROVENANCE
        ],
    log:
        "build/logs/provenance.log",
    conda:
        "envs/reproduce.yaml"
    params:
        roots=ROOTS,
        code=files_digest(*ANALYSIS),
    message:
        "from every number to its records and their commands"
    shell:
        "python -m analysis.across.provenance --numbers {input.numbers} {params.roots} > {log} 2>&1"


rule overview:
    input:
        records=[records(name) for name in EXPERIMENTS],
        claims="paper/claims.yaml",
    output:
        svg=report(
            "build/figures/{figure}.svg",
            caption="paper/captions/overview.rst",
            category="Figures",
            subcategory="All",
            labels={"figure": "{figure}", "form": "svg"},
        ),
        csv=report(
            "build/figures/{figure}.csv",
            caption="paper/captions/overview.rst",
            category="Figures",
            subcategory="All",
            labels={"figure": "{figure}", "form": "csv"},
        ),
    log:
        "build/logs/{figure}.log",
    wildcard_constraints:
        figure="overview|scaling",
    conda:
        "envs/reproduce.yaml"
    params:
        roots=ROOTS,
        code=files_digest(*ANALYSIS),
    message:
        "the figure {wildcards.figure} of all experiments"
    shell:
        "python -m analysis.across.overview --figure {wildcards.figure} --out {output.svg}"
        " {params.roots} > {log} 2>&1"


rule results_page:
    input:
        records=[records(name) for name in EXPERIMENTS],
    output:
        report(
            "build/results.html",
            caption="paper/captions/results.rst",
            category="Results",
            labels={"of": "every record"},
        ),
    log:
        "build/logs/results_page.log",
    conda:
        "envs/reproduce.yaml"
    params:
        roots=ROOTS,
        code=files_digest(*ANALYSIS, "analysis/pages/results*"),
    message:
        "every record on one interactive page"
    shell:
        "python -m analysis.pages.results_page --out {output} {params.roots} > {log} 2>&1"


rule advice:
    input:
        records=[records(name) for name in EXPERIMENTS],
        claims="paper/claims.yaml",
    output:
        [
            report(
                f"build/tables/advice.{form}",
                caption="paper/captions/advice.rst",
                category="Tables",
                subcategory="All",
                labels={"table": "advice", "form": form},
            )
            for form in TABLE_FORMS
        ],
    log:
        "build/logs/advice.log",
    conda:
        "envs/reproduce.yaml"
    params:
        roots=ROOTS,
        code=files_digest(*ANALYSIS),
    message:
        "what the write-ups advise, beside what the records do"
    shell:
        "python -m analysis.advise.recommendations --out build/tables/advice"
        " {params.roots} > {log} 2>&1"


rule writeup:
    input:
        expand("build/{path}", path=[p for name in EXPERIMENTS for p in written(name)]),
        "build/numbers.json",
        "build/claims.json",
        template="paper/writeups/{name}.md.j2",
    output:
        report(
            "build/writeups/{name}.md",
            caption="paper/captions/writeup.rst",
            category="Write-ups",
            labels={"of": "{name}"},
        ),
    log:
        "build/logs/writeup_{name}.log",
    conda:
        "envs/reproduce.yaml"
    params:
        code=files_digest(
            "analysis/documents/writeups.py",
            "analysis/rendering/text.py",
            "analysis/selection/published.py",
        ),
    message:
        "the write-up {wildcards.name}, published beside measured"
    shell:
        "python -m analysis.documents.writeups {wildcards.name} --out {output} > {log} 2>&1"


rule paper:
    input:
        expand("build/{path}", path=[p for name in EXPERIMENTS for p in written(name)]),
        expand("build/figures/{figure}.svg", figure=["overview", "scaling"]),
        "build/numbers.json",
        "build/claims.json",
        rules.provenance.output,
        source="paper/paper.typ",
    output:
        report(
            "build/paper.pdf",
            caption="paper/captions/paper.rst",
            category="Paper",
            labels={"of": "all experiments"},
        ),
    log:
        "build/logs/paper.log",
    conda:
        "envs/reproduce.yaml"
    params:
        code=files_digest(
            "paper/**/*.typ", "paper/*.yml", "analysis/documents/paper.py"
        ),
    message:
        "typesetting the paper"
    shell:
        "python -m analysis.documents.paper --out {output} > {log} 2>&1"
