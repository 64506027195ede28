# What the rules below have in common: each says what to run, and on what.
rule on_all_records:
    input:
        records=rules.records.output,
        claims="paper/claims.yaml",
    log:
        "build/logs/on_all_records.log",
    conda:
        "../envs/reproduce.yaml"
    params:
        roots=ROOTS,
        code="",
        command="",
    shell:
        warm("{params.command} {params.roots:q} > {log:q} 2>&1")


use rule on_all_records as claims with:
    output:
        json=shown("claims.json", "claims", "Claims", form="json"),
        csv=shown("claims.csv", "claims", "Claims", form="csv"),
    log:
        "build/logs/claims.log",
    params:
        code=of_records("claims.__main__"),
        command=lambda wildcards, input, output: f"claims --claims {input.claims} --out {output.json}",
    message:
        "judging every published claim"


use rule on_all_records as overview with:
    output:
        [
            shown(
                f"figures/{figure}.{form}",
                "overview",
                "Figures",
                "All",
                figure=figure,
                form=form,
            )
            for figure in ACROSS
            for form in FIGURE_FORMS
        ],
    log:
        "build/logs/overview.log",
    params:
        code=of_records("across.overview"),
        command=f"across.overview --out build/figures/overview.svg --figure {' '.join(ACROSS)} --",
    message:
        "the figures of all experiments"


use rule on_all_records as reproduction with:
    input:
        findings="paper/findings.yaml",
        records=rules.records.output,
    output:
        [
            shown(f"reproduction.{form}", "reproduction", "Findings", form=form)
            for form in ("md", "html")
        ],
        numbers=shown("numbers/findings.json", "reproduction", "Findings", form="json"),
    log:
        "build/logs/reproduction.log",
    params:
        code=of_records("findings.__main__", "analysis/findings/*.j2"),
        command="findings",
    message:
        "which findings hold here"


# The style that pages share.
PAGE = ["analysis/pages/page.css"]


use rule on_all_records as results_page with:
    output:
        shown("results.html", "results", "Results", of="every record"),
    log:
        "build/logs/results_page.log",
    params:
        code=of_records("pages.results_page", *PAGE, "analysis/pages/results*"),
        command=lambda wildcards, output: f"pages.results_page --out {output}",
    message:
        "every record on one interactive page"


use rule on_all_records as comparison_page with:
    output:
        shown("compare.html", "compare", "Results", of="machines side by side"),
    log:
        "build/logs/comparison_page.log",
    params:
        code=of_records("pages.comparison_page", *PAGE, "analysis/pages/comparison.*"),
        command=lambda wildcards, output: f"pages.comparison_page --out {output}",
    message:
        "the machines that have records, side by side on one page"


use rule on_all_records as advice with:
    output:
        [
            shown(
                f"tables/advice.{form}",
                "advice",
                "Tables",
                "All",
                table="advice",
                form=form,
            )
            for form in TABLE_FORMS
        ],
    log:
        "build/logs/advice.log",
    params:
        code=of_records("advise.recommendations"),
        command="advise.recommendations --out build/tables/advice",
    message:
        "what the write-ups advise, beside what the records do"


# From a number to its records, from a record to its command; and what all of it cost.
PROVENANCE = expand("{list}.csv", list=["numbers", "records"])
PROVENANCE += expand(
    "tables/provenance-{table}.{kind}",
    table=["machines", "costs", "code"],
    kind=TABLE_FORMS,
)


use rule on_all_records as provenance with:
    input:
        numbers="build/numbers.json",
    output:
        [
            shown(
                path,
                "provenance",
                "Numbers",
                "Provenance",
                of=Path(path).stem,
                form=Path(path).suffix[1:],
            )
            for path in PROVENANCE
        ],
    log:
        "build/logs/provenance.log",
    params:
        code=of_records("across.provenance"),
        command=lambda wildcards, input: f"across.provenance --numbers {input.numbers}",
    message:
        "from every number to its records and their commands"


rule numbers:
    input:
        expand("build/numbers/{name}.json", name=[*EXPERIMENTS, "findings"]),
        "build/claims.json",
    output:
        shown("numbers.json", "numbers", "Numbers", "All", of="all experiments"),
    log:
        "build/logs/numbers.log",
    conda:
        "../envs/reproduce.yaml"
    params:
        code=modules_digest("analysis.rendering.numbers"),
    message:
        "joining every number that the prose may use"
    shell:
        warm("rendering.numbers --out {output:q} {input:q} > {log:q} 2>&1")


rule ledger:
    input:
        "build/claims.json",
    output:
        shown("ledger.html", "ledger", "Claims", form="page"),
    log:
        "build/logs/ledger.log",
    conda:
        "../envs/reproduce.yaml"
    params:
        code=modules_digest(
            "analysis.pages.ledger_page", data=PAGE + ["analysis/pages/ledger.*"]
        ),
    message:
        "every claim down to its records, as a page"
    shell:
        warm("pages.ledger_page --claims {input:q} --out {output:q} > {log:q} 2>&1")


rule numbers_page:
    input:
        "build/numbers.csv",
        "build/records.csv",
    output:
        shown("numbers.html", "numbers", "Numbers", "All", of="where each comes from"),
    log:
        "build/logs/numbers_page.log",
    conda:
        "../envs/reproduce.yaml"
    params:
        code=modules_digest(
            "analysis.pages.numbers_page", data=PAGE + ["analysis/pages/numbers.*"]
        ),
    message:
        "every number down to its records, as a page"
    shell:
        warm("pages.numbers_page --out {output:q} > {log:q} 2>&1")
