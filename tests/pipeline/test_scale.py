"""What is done for so many cases is counted: twice of it for twice as many, at most."""

import json
from collections import Counter

import pytest

from analysis.records import frame
from analysis.statistics import intervals
from experiments import gate, grid, record, rounds, runner, source_tree, trusted
from experiments.grid import Task
from tests.pipeline import scale, scale_cases

COUNTS = (50, 100)
LEFT = 5


@pytest.fixture
def counted(monkeypatch):
    """Count the calls of a module's function by its name."""
    calls = Counter()

    def watch(module, name):
        original = getattr(module, name)

        def counting(*given, **more):
            calls[name] += 1
            return original(*given, **more)

        monkeypatch.setattr(module, name, counting)

    return calls, watch


def ways(tasks: list[Task]) -> int:
    """Of so many variants the code is digested."""
    return len({(task.case.variant, task.procedure) for task in tasks})


def test_a_resumed_run_reads_each_record_five_times_and_digests_each_variant_three_times(
    tmp_path, counted
):
    calls, watch = counted
    watch(record, "parse")
    for module in (rounds, runner):
        watch(module, "code_digest")
    for count in COUNTS:
        tasks, out = scale_cases.tasks(count), tmp_path / str(count)
        scale_cases.write_records(out, tasks[:-LEFT])
        calls.clear()
        paths = runner.run(tasks, scale_cases.TIER, device="cpu", out=out, budget_s=1e-3)
        assert runner.failures(tasks, paths) == []
        done, of_done = count - LEFT, ways(tasks[:-LEFT])
        # Which round is open and who left it, what stands aside, what is waiting, what failed. Of
        # those that are not there the first says that the round is open, and all of them wait.
        assert calls["parse"] == 5 * done + 1 + LEFT
        # The three of these that ask for the code; and that of what is to be measured.
        assert calls["code_digest"] == 3 * of_done + ways(tasks[-LEFT:])


def test_what_stands_aside_is_listed_once_for_all_of_a_round(tmp_path, counted):
    calls, watch = counted
    watch(rounds, "_standing_aside")
    for count in COUNTS:
        tasks = scale_cases.tasks(count)
        folder = scale_cases.write_records(tmp_path / str(count), tasks)
        calls.clear()
        rounds.set_all_aside(folder, tasks, lambda *_: "of other code")
        assert calls["_standing_aside"] == 1
        aside = folder.parent / rounds.OUTDATED / folder.name
        assert (len([*folder.iterdir()]), len([*aside.iterdir()])) == (0, count)


def test_the_frame_admits_each_record_once_and_reads_no_grid_for_it(tmp_path, counted):
    calls, watch = counted
    watch(record, "parse")
    watch(gate, "admit")
    watch(gate, "parse")
    watch(grid, "load")
    watch(trusted, "tree_sha")
    watch(source_tree, "tree_sha")
    for count in COUNTS:
        tasks, root = scale_cases.tasks(count), tmp_path / str(count) / "published"
        scale_cases.write_records(root, tasks, is_published=True)
        for one in (gate._procedure, gate._of_variant, intervals.time):
            one.cache_clear()
        calls.clear()
        rows = frame.load(root)
        assert rows["path"].nunique() == count and rows["vouched"].all()
        assert calls["admit"] == calls["parse"] == count
        assert calls["tree_sha"] == 1
        assert calls["load"] <= ways(tasks) + 2 * len(grid.names())


def test_cases_are_distinct_and_their_records_and_grids_are_valid(tmp_path, monkeypatch):
    tasks = scale_cases.tasks(10_000)
    assert len({task.name for task in tasks}) == 10_000
    of_grids = sum(task.is_quick for task in grid.tasks(scale_cases.TIER))
    assert [task.is_quick for task in tasks].count(True) == of_grids > 100
    for path in grid.GRIDS.glob("*.yaml"):
        (tmp_path / "experiments").mkdir(exist_ok=True)
        (tmp_path / "experiments" / path.name).write_text(path.read_text())
    chosen = tasks[:600]
    scale_cases.write_grids(tmp_path, chosen)
    own = {
        name: {
            case.name for case in grid.load(name, tmp_path / "experiments").tiers["laptop"].cases
        }
        for name in grid.names()
    }
    assert own == {
        name: {task.name for task in chosen if name in task.experiments} for name in grid.names()
    }
    folder = scale_cases.write_records(tmp_path / "local", chosen[:40])
    made = [json.loads(path.read_text())["gauges"] for path in folder.iterdir()]
    assert len(made) == 40 and all(made)
    assert gate.sift([folder.parents[1]]).left_out == []
    with pytest.raises(ValueError, match="cases: expected at most"):
        scale_cases.tasks(100_000)


def test_the_table_and_the_figure_say_what_was_taken():
    found = [
        scale.Taken(count, 1, stage, stage, 0.01 * count, 0.008 * count, count * 2**20, 0)
        for count in (100, 1000)
        for stage in ("plan", "resume", "analysis", "build")
    ]
    lines = scale.table(found).splitlines()
    assert lines[0] == "| | 100 | 1,000 |"
    assert lines[2] == "| plan: plan | 1.0 s (0.8), 100 MiB | 10.0 s (8.0), 1000 MiB |"
    axes = scale.drawn(found).axes
    assert [len(ax.lines) for ax in axes] == [3, 3, 5, 6]
    counts, seconds = axes[0].lines[0].get_data()
    assert list(counts) == [100, 1000] and list(seconds) == [1.0, 10.0]
