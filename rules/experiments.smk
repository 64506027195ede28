# A case in one round, for all experiments that it is a point of.
rule measure:
    input:
        # Rounds lie apart in time: one begins where the one before is complete.
        lambda wildcards: round_before(wildcards.round, wildcards.case),
    output:
        # The command itself keeps a record that stands, and sets one of other code aside.
        update(f"{LOCAL}/{{round}}/{{case}}.json"),
    log:
        "build/logs/{round}/{case}.log",
    wildcard_constraints:
        case=rf"(?!{SPREAD}\.json).+",
    # The systems of a shape one after another, before any analysis; on several cards the longest
    # shape first.
    priority: lambda wildcards: places(wildcards.round)[wildcards.case]
    conda:
        "../envs/reproduce.yaml"
    # On a CPU the cores are the device: nothing else runs beside a measurement.
    threads: lambda wildcards: cores_of(TASKS[wildcards.case].case)
    resources:
        **ON_NODES,
        **ON_CARDS,
        # No parameter: what is said of a case plans nothing.
        gpu=int(DEVICE != "cpu"),
        # Of the cases that one job on a cluster measures.
        in_turn=1,
        runtime=lambda wildcards: minutes_of(TASKS[wildcards.case]),
        # A shape has its card. No parameter either: another number of cards plans nothing.
        on=lambda wildcards: device_of(wildcards.round, wildcards.case),
        progress=lambda wildcards: about(wildcards),
    params:
        machine=HERE,
        tier=TIER,
        # What was measured on another device is planned anew.
        device=DEVICE,
        number=lambda wildcards: wildcards.round.removeprefix("round-"),
        limits=lambda wildcards: str(TASKS[wildcards.case].limits),
        code=lambda wildcards: code_of(TASKS[wildcards.case]),
    message:
        "{wildcards.round}: {wildcards.case}" if IS_CLUSTER else "{resources.progress}"
    shell:
        "python -m experiments.warm run --tier {params.tier} --device {resources.on}"
        " --machine {params.machine}"
        " --round {params.number} --case {wildcards.case} > {log} 2>&1"
        # 3: the case failed, as its record says; the end of the run tells of it.
        " || test $? -eq 3"


# One over ranks that run at once, each with a card of its own.
use rule measure as measure_ranks with:
    wildcard_constraints:
        case=SPREAD,
    resources:
        **ON_NODES,
        **ON_CARDS,
        gpu=lambda wildcards: cards_of(TASKS[wildcards.case].case),
        runtime=lambda wildcards: minutes_of(TASKS[wildcards.case]),
        on=lambda wildcards: device_of(wildcards.round, wildcards.case),
        progress=lambda wildcards: about(wildcards),


# Ranks of more cards than a node has: `run` starts them over the nodes of its job.
WIDE = {
    str(task.case.world_size) for task in TASKS.values() if nodes_for(task.case) > 1
}
if WIDE:

    ruleorder: measure_nodes > measure_ranks

    use rule measure as measure_nodes with:
        wildcard_constraints:
            case=rf".+_p({'|'.join(sorted(WIDE))})(_seed\d+)?",
        resources:
            **{key: asked for key, asked in ON_NODES.items() if key != "gpu_model"}
            | {
                # Not a step of SLURM's: it makes one over its nodes, a process on each.
                "mpi": "srun",
                "nodes": lambda wildcards: nodes_for(TASKS[wildcards.case].case),
                "tasks": lambda wildcards: nodes_for(TASKS[wildcards.case].case),
                "tasks_per_gpu": 0,
                "gres": lambda wildcards: gres_of(TASKS[wildcards.case].case),
            },
            runtime=lambda wildcards: minutes_of(TASKS[wildcards.case]),
            on=DEVICE,
            progress=lambda wildcards: about(wildcards),


rule round_complete:
    input:
        lambda wildcards: of_round(wildcards.round),
    output:
        touch("build/logs/{round}.complete"),
    message:
        "{wildcards.round} is complete"


# What all that reads records waits for: thousands of inputs to each of a score of jobs would take
# Snakemake longer than the jobs do.
rule records:
    input:
        [records(name) for name in EXPERIMENTS],
        [path for path in ["results/published/TRUSTED"] if Path(path).exists()],
    output:
        "build/logs/records.complete",
    log:
        "build/logs/records.log",
    localrule: True
    conda:
        "../envs/reproduce.yaml"
    message:
        "all records are there"
    # When that was: of a small file Snakemake goes by the content.
    shell:
        "date --utc +%FT%T.%N > {output:q} 2> {log:q}"


for name in EXPERIMENTS:

    rule:
        name:
            f"notebook_{name}"
        input:
            # How much rounds differ, all records of a machine say together.
            records=rules.records.output,
            notebook=f"analysis/notebooks/{name}.ipynb",
            published="paper/claims.yaml",
        output:
            f"build/notebooks/{name}.ipynb",
            # What it writes stands in the report with the text before it as its caption.
            [
                in_report(
                    f"build/{path}",
                    caption=f"../build/{caption_path(path)}",
                    **place(path, name),
                )
                for path in written(name)
            ],
        log:
            f"build/logs/notebook_{name}.log",
        # What has most records takes longest: it does not begin last, when nothing runs beside it.
        priority: shares()[name]
        conda:
            "../envs/reproduce.yaml"
        params:
            experiment=name,
            roots=ROOTS,
            code=modules_digest(
                "analysis.notebook",
                f"analysis.experiments.{name}.contents",
                data=[
                    "analysis/experiments/*/layout.yaml",
                    "paper/readings.yaml",
                    *[f"experiments/{one}.yaml" for one in read_by(name)],
                ],
            ),
        message:
            "executing the notebook: its figures, tables and numbers"
        shell:
            warm("notebook {params.experiment:q} {params.roots:q} > {log:q} 2>&1")

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
            "../envs/reproduce.yaml"
        params:
            experiment=name,
            code=modules_digest("analysis.outputs"),
        message:
            "what the report says of the notebook's figures and tables"
        shell:
            warm("outputs {params.experiment:q} > {log:q} 2>&1")


rule notebook_page:
    input:
        "build/notebooks/{name}.ipynb",
    output:
        shown("notebooks/{name}.html", "notebook", "Notebooks", of="{name}"),
    log:
        "build/logs/notebook_page_{name}.log",
    conda:
        "../envs/reproduce.yaml"
    params:
        code=modules_digest(
            "analysis.pages.notebook_page", data=["analysis/pages/notebook/*"]
        ),
    message:
        "the notebook {wildcards.name} as a page"
    shell:
        warm("pages.notebook_page {input:q} > {log:q} 2>&1")
