"""What Snakemake plans: on a fresh copy of the repository, after edits, touches and losses."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import grid
from tests.pipeline.conftest import ROOT, fresh_copy, jobs, planned, snakemake

pytestmark = pytest.mark.pipeline

GRID = """
title: t
question: q
procedure: attention
tiers:
  smoke:
    limits: {{min_samples: 1, max_samples: 1, timeout_s: 60}}
    cases:
      - variant: [{variants}]
        heads: 2
        head_dim: 8
        dtype: float32
        is_causal: false
        pass: forward
        pattern: dilated
        sparsity: 0.5
        block_size: 16
        shapes:
          - {{batch: 1, seq_len: 32, segment_lengths: [16], dilation_rates: [1]}}
  laptop: {{cases: []}}
  gpu: {{cases: []}}
"""


PUBLISHED = ("--config", "source=published")
OTHER_CODE = {"software": {"code_digest": "of other code"}}
SMOKE = ("experiments", "--config", "tier=smoke", "device=cpu")


@pytest.fixture(scope="module")
def measured(once, tmp_path_factory):
    """A copy with three tiny grids, measured: once for all workers, each of which has its own."""
    shared = once("measured", _measure, once.folder / "measured")
    return shutil.copytree(shared, tmp_path_factory.mktemp("mine") / "copy")


def _measure(folder: Path) -> Path:
    fresh_copy(folder)
    for path in (folder / "experiments").glob("*.yaml"):
        path.unlink()
    (folder / "experiments/dilated.yaml").write_text(GRID.format(variants="dense, dilated-sdpa"))
    (folder / "experiments/comprehensive.yaml").write_text(GRID.format(variants="dilated-gather"))
    (folder / "experiments/block_sparse.yaml").write_text(GRID.format(variants="block-sparse"))
    done = snakemake(folder, *SMOKE)
    assert done.returncode == 0, done.stdout
    assert len(list((folder / "results/local").rglob("*.json"))) == 4
    return folder


def test_an_experiment_without_published_records_is_left_out_and_named(tmp_path):
    folder = fresh_copy(tmp_path)
    own = {case.name for case in grid.load("backends").tiers["laptop"].cases}
    for path in (folder / "results/published").rglob("*.json"):
        if path.stem in own:
            path.unlink()
    done = snakemake(folder, "-n", "--config", "source=published")
    told = done.stdout
    assert done.returncode == 0, told
    assert "backends: left out, it has no record here" in told
    assert "notebook_backends" not in told and "notebook_dilated" in told


@pytest.fixture(scope="module")
def second(measured):
    """A second run, planned after every file was touched, that lists the code of each rule."""
    for path in measured.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            path.touch()
    return listed(measured)


def listed(folder: Path):
    """A dry run that lists the digest of the code that each rule runs."""
    listing = folder / "list-codes.smk"
    listing.write_text(
        f"include: {str(folder / 'Snakefile')!r}\n"
        "for one in workflow.rules:\n"
        "    if isinstance(one.params.get('code'), str):\n"
        "        print('CODE', one.name, one.params.code, sep='\\t')\n"
    )
    return snakemake(folder, "-s", listing.name, "-n", *SMOKE)


def codes(done) -> dict[str, str]:
    """The digest of the code that each rule runs, by the name of the rule."""
    lines = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert done.returncode == 0 and lines, done.stdout
    return {name: code for _, name, code in lines}


def test_a_second_run_has_nothing_to_do_whatever_was_touched(second):
    assert jobs(second) == {}


def edited(path: Path, old: str, new: str):
    """Replace text in a file; a context that puts it back."""

    class Edit:
        def __enter__(self):
            self.before = path.read_text()
            assert old in self.before
            path.write_text(self.before.replace(old, new, 1))

        def __exit__(self, *_):
            path.write_text(self.before)

    return Edit()


def test_a_new_length_and_a_lost_record_plan_their_cases_and_no_other(measured):
    of_dilated = measured / "experiments/dilated.yaml"
    line = "          - {batch: 1, seq_len: 32, segment_lengths: [16], dilation_rates: [1]}\n"
    lost = next((measured / "results/local").rglob("block-sparse_*.json"))
    with edited(of_dilated, line, line + line.replace("32", "48")), edited(lost, "", ""):
        lost.unlink()
        assert planned(measured, *SMOKE) == {"measure": 3}


EDIT = ("import torch\n", "import torch\n\n_EDITED = 1\n")


def test_an_edit_to_a_model_plans_the_variants_that_use_it(measured):
    with edited(measured / "models/dilated.py", *EDIT):
        plan = planned(measured, *SMOKE)
    assert plan == {"measure": 2}
    with (
        edited(measured / "models/dense.py", *EDIT),
        edited(measured / "models/patterns/block_builders.py", *EDIT),
        edited(
            measured / "analysis/statistics/intervals.py",
            "import numpy",
            "_EDITED = 1\nimport numpy",
        ),
    ):
        assert planned(measured, *SMOKE) == {"measure": 2}


def test_words_and_layout_plan_nothing(measured):
    """Docstrings and comments in what every case runs through."""
    dilated, dense = (measured / f"models/{name}.py" for name in ("dilated", "dense"))
    with (
        edited(dilated, '"""', '"""Reworded. '),
        edited(dense, "import torch\n", "import torch  # a comment\n\n\n"),
        edited(measured / "experiments/supervise.py", '"""', '"""Reworded. '),
        edited(measured / "experiments/dilated.yaml", "question: q", "question: q  # a comment"),
    ):
        assert planned(measured, *SMOKE) == {}


def test_an_edit_of_one_experiments_table_is_for_its_notebook_alone(measured, second):
    before = codes(second)
    notebooks = {f"notebook_{name}" for name in ("dilated", "comprehensive", "block_sparse")}
    of_notebooks = {rule for rule in before if rule.startswith("notebook_")}
    assert of_notebooks == notebooks | {"notebook_page"}

    def changed(*paths: str) -> set[str]:
        with contextlib.ExitStack() as stack:
            for path in paths:
                marked = "_EDITED = 1\nfrom __future__"
                stack.enter_context(edited(measured / path, "from __future__", marked))
            now = codes(listed(measured))
        return {rule for rule in now if now[rule] != before[rule]}

    own = ("experiments/dilated/tables.py", "across/overview.py", "documents/paper.py")
    expected = {"notebook_dilated", "overview", "paper"}
    assert changed(*(f"analysis/{path}" for path in own)) == expected
    assert notebooks <= changed("analysis/standard/panels.py")


def test_records_that_snakemake_did_not_make_follow_the_code_too(measured):
    kept = measured / "kept-metadata"
    (measured / ".snakemake").rename(kept)
    try:
        with edited(measured / "models/dense.py", *EDIT):
            assert planned(measured, *SMOKE) == {"measure": 1}
        assert planned(measured, *SMOKE) == {}
    finally:
        shutil.rmtree(measured / ".snakemake")
        kept.rename(measured / ".snakemake")


def fields_of(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_failure_of_the_day_is_planned_again_and_a_dry_run_writes_no_record(measured):
    path = next((measured / "results/local").rglob("dense_*.json"))
    before = path.read_text()
    for fields in ({"status": "failed", "reason": "killed", "cause": "day"}, OTHER_CODE):
        fields_of(path, **fields)
        written = {one: one.read_bytes() for one in (measured / "results").rglob("*.*")}
        assert planned(measured, *SMOKE) == {"measure": 1}
        assert {one: one.read_bytes() for one in (measured / "results").rglob("*.*")} == written
    path.write_text(before)
    assert planned(measured, *SMOKE) == {}


def test_other_code_is_set_aside_when_its_case_is_measured(measured):
    path = next((measured / "results/local").rglob("dense_*.json"))
    fields_of(path, **OTHER_CODE)
    old = path.read_bytes()
    assert snakemake(measured, *SMOKE).returncode == 0
    (aside,) = (measured / "results/local").rglob("outdated/round-1/dense_*.json")
    assert aside.read_bytes() == old and json.loads(path.read_text())["status"] == "ok"
    assert planned(measured, *SMOKE) == {}
    shutil.rmtree(aside.parents[1])


def test_failed_cases_are_the_last_that_is_told_and_the_exit_status(measured):
    records = sorted((measured / "results/local").rglob("*.json"))
    before = [path.read_bytes() for path in records]
    procedure = measured / "experiments/procedures/attention.py"
    line = next(x for x in procedure.read_text().splitlines(True) if x.startswith("def replicate"))
    with edited(procedure, line, line + "    import os; os.kill(os.getpid(), 9)\n"):
        done = snakemake(measured, *SMOKE)
        assert done.returncode == 1, done.stdout
        told = done.stdout.strip().splitlines()
        assert told[-1] == "4 cases failed; the same command measures them again"
        assert sum("failed: its process was killed by SIGKILL" in one for one in told[-6:]) == 4
        assert planned(measured, *SMOKE) == {"measure": 4}
    # With the code, what it measured comes back.
    done = snakemake(measured, *SMOKE)
    assert done.returncode == 0 and planned(measured, *SMOKE) == {}, done.stdout
    assert [path.read_bytes() for path in records] == before
    shutil.rmtree(records[0].parents[1] / "outdated")


def test_the_next_round_begins_where_the_one_before_is_complete(measured):
    """And adds to it: what was measured stays as it is."""
    done = snakemake(measured, "-n", *SMOKE, "rounds=2")
    assert jobs(done) == {"measure": 4, "round_complete": 1}
    kept = sorted((measured / "results/local").rglob("*.json"))
    before = [path.read_bytes() for path in kept]
    assert snakemake(measured, *SMOKE, "rounds=2").returncode == 0
    assert [path.read_bytes() for path in kept] == before
    found = sorted((measured / "results/local").rglob("*.json"))
    assert [path.name for path in found] == 2 * [path.name for path in kept]
    complete = (measured / "build/logs/round-1.complete").stat().st_mtime
    second = [path for path in found if path.parent.name == "round-2"]
    assert all(path.stat().st_mtime > complete for path in second)
    lost = second[0].read_bytes()
    second[0].unlink()
    assert planned(measured, *SMOKE, "rounds=2") == {"measure": 1}
    second[0].write_bytes(lost)
    # The first round anew: the second stands.
    with edited(measured / "models/dense.py", *EDIT):
        assert planned(measured, *SMOKE, "rounds=2")["measure"] == 2
    shutil.rmtree(second[0].parent)


def left_out(told: str) -> tuple[int, int, float]:
    """Of a limit's line: how many cases fit, how many are left out, and their device-hours."""
    found = re.search(
        r"hours=\S+: (no case|\d+ cases).*; left out: (\d+) cases, (\S+) device-hours", told
    )
    fit = 0 if found[1] == "no case" else int(found[1].split()[0])
    return fit, int(found[2]), float(found[3])


def test_a_limit_of_hours_takes_what_fits_and_the_next_run_goes_on(measured):
    kept = {path: path.read_bytes() for path in (measured / "results/local").rglob("*.json")}
    for path in kept:
        path.unlink()
    try:
        done = snakemake(measured, "-n", *SMOKE, "hours=0.0000001")
        assert jobs(done) == {}
        fit, left, whole = left_out(done.stdout)
        assert (fit, left) == (0, 4) and 0.0001 < whole < 0.01
        limit = f"hours={0.7 * whole:.8f}"
        done = snakemake(measured, "-n", *SMOKE, limit)
        fit, left, further = left_out(done.stdout)
        assert fit + left == 4 and 1 <= fit <= 3 and further < whole
        assert jobs(done) == {"measure": fit}
        measured_by_now = 0
        for _ in range(4):
            done = snakemake(measured, *SMOKE, limit)
            assert done.returncode == 0, done.stdout
            there = len(list((measured / "results/local").rglob("*.json")))
            begun, ended = there - measured_by_now, done.stdout
            assert f"{begun} cases to measure, " in ended
            assert re.search(rf"measured {begun} cases in 0\.\d+ device-hours, expected 0\.", ended)
            measured_by_now = there
            if there == 4:
                break
        assert measured_by_now == 4 and begun < 4
        done = snakemake(measured, *SMOKE, limit)
        assert f"{limit.rstrip('0')}: all 4 cases are measured" in done.stdout
        assert jobs(snakemake(measured, "-n", *SMOKE, limit)) == {}
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_limit_for_published_results_is_told(measured):
    done = snakemake(measured, "-n", "--config", "source=published", "hours=2")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "--config hours=2: source=published measures nothing" in done.stdout


def test_two_cards_share_a_round_by_shapes(measured):
    """Cards that are not there, planned: all systems of a shape on one, on the other next time."""
    of_dilated = measured / "experiments/dilated.yaml"
    line = "          - {batch: 1, seq_len: 32, segment_lengths: [16], dilation_rates: [1]}\n"
    listing = measured / "two-cards.smk"
    listing.write_text(
        "from experiments import cards as here\n"
        "here._POOLS['cuda'] = lambda: tuple(\n"
        "    here.Gpu(str(i), f'GPU-{i}', 'NVIDIA H100', '580', 2**36) for i in range(2)\n"
        ")\n"
        f"include: {str(measured / 'Snakefile')!r}\n"
        "for one in ROUNDS:\n"
        "    for name, task in TASKS.items():\n"
        "        cards = [holds(one, name, place) for place in range(2)]\n"
        "        told = (one, task.case.seq_len, device_of(one, name), cards.index(1))\n"
        "        print('TURN', *told, places(one)[name], sep='\\t')\n"
    )
    options = ("experiments", "--config", "tier=smoke", "device=cuda", "rounds=2")
    with edited(of_dilated, line, line + line.replace("32", "48")):
        done = snakemake(measured, "-s", listing.name, "-n", *options)
    assert jobs(done) == {"measure": 12, "round_complete": 1}
    rows = [one.split("\t")[1:] for one in done.stdout.splitlines() if one.startswith("TURN")]
    assert len(rows) == 12 and all(device == f"cuda:{place}" for _, _, device, place, _ in rows)
    cards = {}
    for round_, length, device, _, _ in rows:
        cards.setdefault((round_, length), set()).add(device)
    assert cards == {
        ("round-1", "32"): {"cuda:1"},
        ("round-1", "48"): {"cuda:0"},
        ("round-2", "32"): {"cuda:0"},
        ("round-2", "48"): {"cuda:1"},
    }
    # One of each shape first; the last are of the shape with more systems.
    first = [row for row in rows if row[0] == "round-1"]
    order = [row[1] for row in sorted(first, key=lambda row: -int(row[4]))]
    assert set(order[:2]) == {"32", "48"} and order[-1] == "32"


def test_only_measuring_asks_for_a_gpu():
    text = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = re.split(r"\n(?=\s*(?:use )?rule\b)", text)
    asking = [
        rule.strip().partition(":")[0] for rule in rules if re.search(r"^\s+gpu=", rule, re.M)
    ]
    assert asking == ["rule measure", "use rule measure as measure_ranks with"]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "sorce=published",
            "--config sorce: expected one of source, tier, rounds, hours, device, partition, "
            "gpu_model, machine_type",
        ),
        ("partition=gpu", "--config partition: expected where a cluster of its kind runs the jobs"),
        ("device=stand-in", "--device stand-in: not here; there is cpu"),
        ("source=remote", "--config source=remote: expected local or published"),
        ("tier=huge", "tier 'huge': expected one of smoke, quick, full, laptop, gpu"),
        ("rounds=0", "--config rounds=0: expected an integer from 1 to 1000"),
        ("rounds=true", "--config rounds=true: expected an integer from 1 to 1000"),
        *(
            (f"hours={text}", f"--config hours={shown}: expected a positive number")
            for text, shown in (
                *(("0", "0"), ("-2", "-2"), ("2h", "2h"), ("true", "true")),
                *(("inf", "inf"), ("nan", "nan"), ("[2]", "['2']")),
            )
        ),
        ("source=[published]", "--config source=['published']: expected local or published"),
        ("tier=[smoke]", "tier ['smoke']: expected one of smoke, quick, full, laptop, gpu"),
        ("device={a: 1}", "--config device={'a': '1'}: expected a name, as cpu or cuda:0"),
        ("device=tpu", "--device tpu: not here; there is cpu"),
    ],
)
def test_a_wrong_option_is_told(measured, option, told):
    done = snakemake(measured, "-n", "--config", option)
    assert done.returncode == 1
    assert told in done.stdout and "Traceback" not in done.stdout


def test_a_wrong_grid_is_told(measured):
    with edited(measured / "experiments/dilated.yaml", "heads: 2", "heds: 2"):
        done = snakemake(measured, "-n", *SMOKE)
    told = done.stdout
    assert done.returncode == 1 and "Traceback" not in told
    assert "dilated.yaml: smoke: cases, block 1: unknown key 'heds'" in told


def test_a_grid_whose_name_a_shell_would_read_is_told(measured):
    bad = measured / "experiments/$(touch pwned) 'x'.yaml"
    bad.touch()
    done = snakemake(measured, "-n", *SMOKE)
    bad.unlink()
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "touch pwned" in done.stdout and "expected a name of a-z, 0-9 and _" in done.stdout


def test_it_runs_from_anywhere_without_activation_in_any_locale(measured, tmp_path):
    """The text of notebooks is read before any job, and a job calls Python."""
    target = "build/captions/figures/dilated-speedup.rst"
    environment = {
        **{"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C"},
        **{"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    }
    command = [sys.executable, "-m", "snakemake", "-s", str(measured / "Snakefile"), target]
    done = subprocess.run(
        [*command, "--config", "tier=smoke", "device=cpu"],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    assert (measured / target).is_file() and not (tmp_path / "build").exists()
    refused = snakemake(measured, "-n", "--directory", str(tmp_path), "-s", "Snakefile", *SMOKE)
    assert refused.returncode == 1 and "Traceback" not in refused.stdout
    assert f"--directory {tmp_path}: expected {measured}, or none" in refused.stdout


def test_a_failed_job_says_why_before_its_few_files(measured):
    """Of hundreds."""
    (measured / "failing.smk").write_text(
        f"include: {str(measured / 'Snakefile')!r}\n"
        "rule failing:\n"
        "    input: sorted(map(str, Path('results/published').rglob('*.json')))\n"
        "    output: 'build/never'\n"
        "    log: 'build/logs/failing.log'\n"
        "    message: 'failing'\n"
        "    shell: 'echo this is why > {log}; false'\n"
    )
    done = snakemake(measured, "-s", "failing.smk", "failing", *SMOKE[1:])
    assert done.returncode == 1
    told = done.stdout.partition("Error in rule failing:\n    ")[2].split("\n    ")
    assert told[0] == "message: this is why"
    inputs = next(line for line in told if line.startswith("input: "))
    assert inputs.count(".json") == 3 and re.search(r", and \d{4} more$", inputs)
    assert len(done.stdout) < 4000


def test_what_reads_records_is_made_anew_where_one_changed_in_an_earlier_run(measured):
    """Of the file between, Snakemake goes by the content."""
    complete = "build/logs/records.complete"
    assert snakemake(measured, complete, *SMOKE[1:]).returncode == 0
    before = (measured / complete).read_bytes()
    record = next((measured / "results/local").rglob("*.json"))
    with edited(record, "{", "{ "):
        assert snakemake(measured, complete, *SMOKE[1:]).returncode == 0
    assert (measured / complete).read_bytes() != before != b""


def test_published_results_measure_nothing_and_each_stands_in_the_report(tmp_path):
    """Of a whole build, planned: what `snakemake --report` would hold, with which captions."""
    folder = fresh_copy(tmp_path)
    listing = folder / "list-results.smk"
    listing.write_text(
        f"include: {str(folder / 'Snakefile')!r}\n"
        "from snakemake.io import get_flag_value, is_flagged\n"
        "for one in workflow.rules:\n"
        "    for path in one.output:\n"
        "        found = get_flag_value(path, 'report') if is_flagged(path, 'report') else None\n"
        "        caption = found.caption.get_path_or_uri(secret_free=True) if found else ''\n"
        "        print('OUTPUT', path, found.category if found else '', caption, sep='\\t')\n"
        "    if one.name == 'writeup':\n"
        "        print(*(f'NEEDS\\t{path}' for path in one.input), sep='\\n')\n"
    )
    done = snakemake(folder, "-s", listing.name, "-n", "all", *PUBLISHED)
    plan = jobs(done)
    assert plan and not any(rule.startswith("measure") for rule in plan)
    rows = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("OUTPUT")]
    assert len(rows) > 200
    # What a write-up shows is there before it is written.
    needed = {line.split("\t")[1] for line in done.stdout.splitlines() if line.startswith("NEEDS")}
    for template in (folder / "paper/writeups").glob("*.j2"):
        for name in re.findall(r'{{ figure\("([^"]+)"', template.read_text()):
            names = (name, f"{template.name.partition('.')[0]}-{name}")
            paths = {f"build/figures/{one}.svg" for one in names}
            assert paths & needed, (template.name, name)
    unlisted = {path for path, category, _ in rows if not category}
    # One file has no use for a page of links to others, nor for an archive.
    unlisted -= {"build/index.html", "build/downloads.zip"}
    assert all(
        path.startswith(("build/captions/", "build/logs/", "build/notebooks/", "results/local/"))
        for path in unlisted
    ), unlisted
    outputs = {path for path, _, _ in rows}
    for path, category, caption in rows:
        if category:
            shown = Path(caption).resolve().relative_to(folder.resolve())
            assert (folder / shown).is_file() or shown.as_posix() in outputs, (path, shown)
