BUILT = [f"build/{path}" for name in EXPERIMENTS for path in written(name)]
BUILT += expand("build/figures/{figure}.svg", figure=ACROSS)
BUILT += ["build/numbers.json", "build/claims.json"]


rule writeup:
    input:
        BUILT,
        template="paper/writeups/{name}.md.j2",
    output:
        shown("writeups/{name}.md", "writeup", "Write-ups", of="{name}"),
    log:
        "build/logs/writeup_{name}.log",
    conda:
        "../envs/reproduce.yaml"
    params:
        code=modules_digest("analysis.documents.writeups"),
    message:
        "the write-up {wildcards.name}, published beside measured"
    shell:
        warm("documents.writeups {wildcards.name:q} --out {output:q} > {log:q} 2>&1")


rule paper:
    input:
        BUILT,
        rules.provenance.output,
        source="paper/paper.typ",
    output:
        shown("paper.pdf", "paper", "Paper", of="all experiments"),
    log:
        "build/logs/paper.log",
    conda:
        "../envs/reproduce.yaml"
    params:
        code=modules_digest(
            "analysis.documents.paper", data=["paper/**/*.typ", "paper/*.yml"]
        ),
    message:
        "typesetting the paper"
    shell:
        warm("documents.paper --out {output:q} > {log:q} 2>&1")


use rule on_all_records as index_page with:
    input:
        MADE,
        records=rules.records.output,
    output:
        page="build/index.html",
        archive="build/downloads.zip",
    log:
        "build/logs/index_page.log",
    params:
        code=of_records("pages.index_page", *PAGE, "analysis/pages/index*"),
        command=lambda wildcards, output: f"pages.index_page --out {output.page}",
    message:
        "the first page of all of it, and one archive"
