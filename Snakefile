# Grids -> one job per case -> records -> notebooks -> figures, tables, numbers and
# verdicts -> write-ups and paper. Rules are thin: all that they call runs without
# Snakemake too. A bare `snakemake` measures on this machine and does all of it;
# `snakemake --config source=published` starts from the records in the repository.
import sys

from snakemake.utils import min_version

min_version("9.19")


# Wherever it is started.
workdir: workflow.basedir


report: "paper/captions/report.rst"


include: "rules/one_run.smk"
include: "rules/settings.smk"
include: "rules/failures.smk"


onstart:
    lock_run()
    note_jobs()
    BEGAN.append(datetime.now(UTC))
    if SOURCE == "local":
        print(told_before(), file=sys.stderr)


onsuccess:
    if SOURCE == "local":
        print(told_after(*BEGAN), file=sys.stderr)
    # What whoever ran this came for.
    if SOURCE == "local" and Path("build/reproduction.md").exists():
        print(
            "", Path("build/reproduction.md").read_text(encoding="utf-8"), sep="\n"
        )
    if SOURCE == "local" and (failed := failed_cases()):
        end = f"{len(failed)} cases failed; the same command measures them again"
        print("", *failed, end, sep="\n", file=sys.stderr)
        # Not by an error, behind which Snakemake would tell more.
        sys.exit(1)


onerror:
    if SOURCE == "local" and BEGAN:
        print(told_after(*BEGAN), file=sys.stderr)
    for line in failed_cases() if SOURCE == "local" else []:
        print(line, file=sys.stderr)


# What a build is made of; its first page leads to all of it.
MADE = [
    "build/paper.pdf",
    "build/reproduction.md",
    "build/ledger.html",
    "build/numbers.html",
    "build/results.html",
    "build/compare.html",
]
MADE += expand("build/writeups/{name}.md", name=WRITEUPS)
MADE += expand("build/notebooks/{name}.html", name=EXPERIMENTS)
MADE += expand("build/figures/{figure}.{form}", figure=ACROSS, form=FIGURE_FORMS)
MADE += expand("build/tables/advice.{form}", form=TABLE_FORMS)
MADE += [f"build/{path}" for name in EXPERIMENTS for path in captions(name)]


rule all:
    input:
        [local_records(name) for name in EXPERIMENTS],
        MADE,
        "build/index.html",
    message:
        "all of it is there: begin with build/index.html"


rule experiments:
    input:
        [local_records(name) for name in EXPERIMENTS],
    message:
        "all is measured"


# Records of one experiment, and its notebook.
include: "rules/experiments.smk"
# What takes the records of all experiments: verdicts, numbers, overview, pages.
include: "rules/across.smk"
# Write-ups and paper, of what stands above.
include: "rules/documents.smk"


# On a cluster one job measures the cases of several shapes; all that is no measuring takes minutes,
# here.
if IS_SUBMITTED:
    workflow.get_rule("measure").group = lambda wildcards: group_of(
        wildcards.round, wildcards.case
    )
    workflow.localrules(
        *(one.name for one in workflow.rules if not one.name.startswith("measure"))
    )
