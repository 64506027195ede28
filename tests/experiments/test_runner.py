"""Runs resume, filter, keep a budget, and depend on the code behind their variant only."""

import ast
import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments import digest, machine, rounds, runner
from experiments import grid as grids
from experiments.procedures import attention
from models.registry import VARIANTS


@pytest.fixture
def run(tmp_path, no_lock):
    def go(only=("seq_len=128", "pass=forward"), **options):
        tasks = runner.select(grids.tasks("smoke", ["dilated"]), runner.parse_only([*only]))
        return runner.run(tasks, "smoke", device="cpu", out=tmp_path, **options)

    return go


def test_a_second_run_keeps_what_is_there_and_goes_on_where_it_stopped(run, capsys):
    paths = run()
    assert len(paths) == 3 and all(p.is_file() for p in paths)
    assert "3 cases to measure, 0 kept" in capsys.readouterr().err
    times = [p.stat().st_mtime_ns for p in paths]
    paths[1].unlink()
    paths[2].write_text(paths[2].read_text()[:100])
    assert run() == paths
    assert "2 cases to measure, 1 kept" in capsys.readouterr().err
    assert paths[0].stat().st_mtime_ns == times[0]
    assert json.loads(paths[2].read_text())["status"] == "ok"


def test_failed_cases_are_tried_again_and_other_code_too(run, capsys):
    paths = run()
    for path, field, value in (
        (paths[0], "status", "failed"),
        (paths[1], "status", "timeout"),
        (paths[2], "software", {"code_digest": "of other code"}),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    capsys.readouterr()
    assert run() == paths
    assert "2 cases to measure, 1 kept" in capsys.readouterr().err


def rewrite(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("status", ["failed", "timeout", "oom"])
def test_a_failure_of_the_day_is_measured_again_and_told(run, capsys, status):
    paths = run()
    rewrite(paths[1], status=status, reason="why", cause="day")
    (task,) = (one for one in grids.tasks("smoke") if one.name == paths[1].stem)
    assert runner.failures([task], [paths[1]]) == [f"round-1, {paths[1].stem}: {status}: why"]
    capsys.readouterr()
    assert run() == paths
    assert "1 cases to measure, 2 kept" in capsys.readouterr().err
    assert json.loads(paths[1].read_text())["status"] == "ok"
    assert runner.failures([task], [paths[1]]) == []


def test_a_second_measurement_that_fails_takes_no_good_ones_place(
    run, monkeypatch, tmp_path, capsys
):
    (path, *_) = run()
    before = path.read_bytes()
    (task,) = (one for one in grids.tasks("smoke") if one.name == path.stem)
    one = runner._Pass(
        "smoke", machine.describe("cpu"), "cpu", tmp_path, "round-1", runner.Workers.of("cpu"), None
    )
    monkeypatch.setattr(attention, "replicate", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    one.run([task], None, again=True)
    assert path.read_bytes() == before
    assert "killed by SIGKILL" in (told := capsys.readouterr().err) and "before stays" in told


def test_what_another_run_measured_meanwhile_is_kept(run, monkeypatch, capsys):
    paths = run()
    texts = {path: path.read_text() for path in paths}
    for path in paths:
        path.unlink()

    @contextmanager
    def hold(device, cards, tick):
        # While this run waited, the other one has measured them all.
        for path, text in texts.items():
            path.write_text(text)
        yield device

    monkeypatch.setattr(runner, "hold", hold)
    capsys.readouterr()
    assert run() == paths
    assert capsys.readouterr().err.count("measured by another run meanwhile") == 3
    assert {path: path.read_text() for path in paths} == texts


def test_a_run_without_a_round_goes_on_with_the_first_that_is_incomplete(run):
    first = run()
    assert {path.parent.name for path in first} == {"round-1"}
    assert {path.parent.name for path in run()} == {"round-2"}
    first[1].unlink()
    assert run() == first and first[1].exists()
    assert {path.parent.name for path in run()} == {"round-3"}


def test_what_other_code_measured_comes_back_with_its_code_unmeasured(run, capsys):
    path, *_ = run()
    text, aside = path.read_text(), path.parents[1] / "outdated" / "round-1"
    aside.mkdir(parents=True)
    path.replace(aside / f"{path.stem}@2026-01-01T000000Z.json")
    capsys.readouterr()
    run()
    assert "round-1 (smoke)" in (told := capsys.readouterr().err)
    assert "0 cases to measure, 3 kept" in told
    assert path.read_text() == text and list(aside.iterdir()) == []


def test_the_order_is_random_by_the_round_and_the_host(run, capsys):
    run(only=["seq_len=128"], round_="round-7")
    told = re.findall(r"left\] (.+)", capsys.readouterr().err)
    tasks = runner.select(grids.tasks("smoke", ["dilated"]), {"seq_len": "128"})
    host = machine.host().id
    drawn = rounds.in_random_order(tasks, f"{host} round-7")
    assert told == [runner.label(task.case) for task in drawn]
    assert {path.parent.name for path in run(only=["seq_len=128"], round_="round-7")} == {"round-7"}


def test_a_budget_takes_the_most_valuable_cases_first(run, capsys):
    paths = run(budget_s=1e-9)
    assert not any(p.exists() for p in paths)
    assert "3 cases left" in capsys.readouterr().err
    paths = run(budget_s=1e9)
    told = capsys.readouterr().err
    order = [told.index(f"] {v}:") for v in ("dense", "dilated-gather", "dilated-sdpa")]
    assert order == sorted(order)


def test_filters_name_what_they_do_not_know():
    with pytest.raises(
        ValueError, match="--only size=3: expected k=v with k one of variant, batch"
    ):
        runner.parse_only(["size=3"])
    only = runner.parse_only(["segment_lengths=[64, 128]", "is_causal=true"])
    assert only == {"segment_lengths": "64+128", "is_causal": "true"}
    only = runner.parse_only(["sparsity=0.98", "seq_len=16384"])
    (task,) = runner.select(grids.tasks("laptop", ["block_sparse"]), only)
    case = task.case
    assert (case.variant, case.sparsity, case.seq_len) == ("block-sparse", 0.98, 16384)
    with pytest.raises(ValueError, match="--only seq_len=3: seq_len is given twice"):
        runner.parse_only(["seq_len=2", "seq_len=3"])


def test_a_digest_covers_the_variant_and_the_measuring_but_no_other_variant():
    names = {
        v: {p.relative_to(digest.ROOT).as_posix() for p in digest.sources(v)} for v in VARIANTS
    }
    for variant in VARIANTS:
        for measuring in ("measure", "check", "workload", "ceilings"):
            assert f"experiments/{measuring}.py" in names[variant]
        assert "models/oracle.py" in names[variant]
        assert "models/registry.py" not in names[variant]
        assert "experiments/__main__.py" not in names[variant]
    for variant, entry in VARIANTS.items():
        replica = entry.replica_of is not None
        whole = entry.shard_order is None and not replica
        assert ("experiments/procedures/replica.py" in names[variant]) == replica
        assert ("models/dense.py" in names[variant]) == (whole and entry.takes is None)
        of_branches = entry.takes == "branches"
        branches_masked = variant == "dilated-masked"
        blocks_masked = variant == "block-sparse-masked"
        assert ("models/masked_dilated.py" in names[variant]) == branches_masked
        assert ("models/dilated.py" in names[variant]) == (
            entry.multihead or (whole and of_branches and not branches_masked)
        )
        assert ("models/modules.py" in names[variant]) == entry.multihead
        of_blocks = entry.takes == "blocks"
        assert ("models/masked.py" in names[variant]) == (branches_masked or blocks_masked)
        by_lists = whole and of_blocks and not blocks_masked
        assert ("models/block_sparse.py" in names[variant]) == by_lists
        assert ("models/patterns/block_builders.py" in names[variant]) == of_blocks
        over_ranks = entry.shard_order is not None
        assert ("experiments/procedures/ranks.py" in names[variant]) == over_ranks
        assert "experiments/supervise.py" not in names[variant]
        for path in ("models/ring/plan.py", "models/ring/hops.py"):
            peer = "peer" in entry.options
            assert (path in names[variant]) == (entry.multihead or (over_ranks and not peer))


def test_tiles_are_code_of_the_variants_that_may_run_the_kernels(copied):
    for kernel in ("dilated", "block_sparse"):
        table = copied / f"models/kernels/{kernel}.json"
        table.write_text('{"forward": []}')
        (table.with_suffix(".py")).touch()
    before = {v: digest.code_digest(v) for v in VARIANTS}
    (copied / "models/kernels/dilated.json").write_text('{"forward": [1]}')
    # By "auto", which may run them; only to the module over ranks is the other call no stranger.
    modules = {"multihead-ring-dilated"}
    modules |= {f"dilated-streamed{source}" for source in ("", "-mapped", "-host")}
    by_name = {"dilated-triton", "dilated-gluon"}
    assert changed(before) == by_name | modules
    (copied / "models/kernels/block_sparse.json").write_text('{"forward": [1]}')
    assert changed(before) == {"block-sparse"} | by_name | modules


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the code that digests are taken of."""
    for folder in ("models", "experiments"):
        shutil.copytree(digest.ROOT / folder, tmp_path / folder)
    monkeypatch.setattr(digest, "ROOT", Path(tmp_path))
    return tmp_path


def changed(before):
    """The variants whose digest is another than `before`."""
    return {v for v in VARIANTS if digest.code_digest(v) != before[v]}


def test_a_digest_follows_what_code_does_not_its_words(copied):
    before = {v: digest.code_digest(v) for v in VARIANTS}
    # Two published names of one call: they differ in the case's pattern.
    same = {"ring-block-sparse", "ring-block-sparse-dilated"}
    assert len(set(before.values())) == len(before) - 1
    assert len({before[v] for v in same}) == 1
    dilated = copied / "models/dilated.py"
    dilated.touch()
    assert changed(before) == set()
    words = dilated.read_text()
    said = ast.get_docstring(ast.parse(words), clean=False)
    dilated.write_text(
        words.replace(said, f"In better words: {said}").replace("\n\n\n", "\n# Why.\n")
    )
    assert dilated.read_text() != words and changed(before) == set()
    for file, variants in (
        (
            "models/dilated.py",
            {
                v
                for v, entry in VARIANTS.items()
                if entry.multihead
                or (entry.takes == "branches" and not entry.shard_order and not entry.replica_of)
            }
            - {"dilated-masked"},
        ),
        (
            "models/block_sparse.py",
            {v for v in VARIANTS if v.startswith("block-sparse")} - {"block-sparse-masked"},
        ),
        ("models/masked.py", {"block-sparse-masked", "dilated-masked"}),
        ("experiments/ceilings.py", set(VARIANTS)),
    ):
        with (copied / file).open("a") as opened:
            opened.write("\nADDED = 1\n")
        assert changed(before) == variants
        before = {v: digest.code_digest(v) for v in VARIANTS}


def test_a_case_is_told_with_its_mask(case):
    told = runner.label(case(variant="block-sparse", pattern="dilated", sparsity=0.95))
    assert told == (
        "block-sparse: batch 2, 40 tokens, 4x8, dilated at 95 % sparsity, float32 causal"
    )
