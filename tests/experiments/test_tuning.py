"""Tuning by a clock that stands in for a card: who wins, who is out and why, what is kept."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from experiments.tuning import plan, tables
from experiments.tuning.candidates import candidates
from experiments.tuning.clocks import StandIn, Wrong, close
from experiments.tuning.plan import Entry
from experiments.tuning.race import CannotStart, race
from experiments.tuning.tune import tune
from models.kernels import block_sparse, tile_tables, tiles
from models.kernels.compile import KERNELS
from models.kernels.tiles import Tile

ROOT = Path(__file__).parents[2]
FORWARD = Entry("dilated", "forward", 64, 16)
CURRENT = Tile(128, 64, 4, 3)
MANY = [Tile(16 * n, 16, 4, 2) for n in range(1, 9)]


@dataclass(frozen=True)
class Clock:
    """Pass number n of a tile takes ms[tile] + n / 1e6; a tile in `bad` does that instead."""

    ms: tuple = ()
    bad: tuple = ()
    folder: Path | None = None
    name: str = "test card"

    def __call__(self, entry, current):
        def sample(tile, count):
            if self.folder:
                with (self.folder / "asked").open("a") as asked:
                    asked.write(f"{tile.block_m} {count}\n")
            how = dict(self.bad).get(tile)
            if how == "hang":
                time.sleep(600)
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "wrong":
                raise Wrong("its result is not that of the current tile")
            if how == "memory":
                raise torch.OutOfMemoryError("no room\nat all")
            return [dict(self.ms).get(tile, 5.0) + n / 1e6 for n in range(count)]

        return sample


def later(seconds=60.0):
    return time.monotonic() + seconds


def test_the_plan_holds_every_entry_once_and_begins_with_what_matters():
    planned = plan.plan()
    assert sorted(map(str, planned)) == sorted(map(str, plan.entries(plan.TABLES)))
    assert len(set(planned)) == len(planned) == 2 * 3 * 4 * 2 + 3 * 4 * 3 + 2
    assert [(e.table, e.kernel, e.head_dim, e.bits, e.block_size) for e in planned[:8]] == [
        ("dilated", "forward", 64, 16, None),
        ("block_sparse", "forward", 64, 16, 64),
        ("block_sparse", "forward_pair", 64, 16, 64),
        ("dilated", "backward_kv", 64, 16, None),
        ("dilated", "backward_q", 64, 16, None),
        ("block_sparse", "backward_kv", 64, 16, 64),
        ("block_sparse", "backward_q", 64, 16, 64),
        ("hop", "forward", 64, 16, None),
    ]
    assert {e.head_dim for e in planned[10:19]} == {128}
    assert all(e.bits == 32 or e.block_size in (16, 32) or e.head_dim in (32, 256)
               for e in planned[19:])  # fmt: skip
    assert plan.BLOCK_SIZES == block_sparse.TILE_SIZES and list(KERNELS) == list(plan.TABLES)


def test_candidates_are_distinct_and_hold_what_the_review_of_hopper_names():
    for entry in plan.plan():
        found = candidates(entry)
        assert len(set(found)) == len(found) > 1
        if entry.block_size:
            own = "block_n" if entry.kernel == "backward_kv" else "block_m"
            assert {getattr(tile, own) for tile in found} == {entry.block_size}
    assert Tile(64, 64, 4, 3) in candidates(Entry("dilated", "backward_kv", 64, 16))
    assert Tile(128, 128, 8, 2) in candidates(FORWARD)
    assert candidates(FORWARD)[0] == Tile(128, 128, 8, 3, rotated=True)
    assert 5 in {tile.stages for tile in candidates(Entry("block_sparse", "forward", 64, 16, 64))}


def test_the_fastest_wins_by_halving(tmp_path):
    times = tuple((tile, 1.0 + n / 10) for n, tile in enumerate(reversed(MANY)))
    result = race(FORWARD, CURRENT, MANY, Clock(times, folder=tmp_path), later())
    assert result.best == MANY[-1] and result.finished and not result.lost
    assert result.raced == 9
    assert result.ms_before == pytest.approx(5.0, abs=1e-4)
    assert result.ms_after == pytest.approx(1.0, abs=1e-4)
    lines = (tmp_path / "asked").read_text().splitlines()
    asked = [tuple(map(int, line.split())) for line in lines]
    per_round = {count: [b for b, c in asked if c == count] for count in (5, 10, 20, 40)}
    assert [len(of) for of in per_round.values()] == [9, 5, 3, 2] and len(asked) == 19
    # The current one, of 128 rows too, to the end.
    assert per_round[20] == [128, 128, 112] and per_round[40] == [128, 128]


def test_the_current_tile_stays_where_none_is_faster():
    result = race(FORWARD, CURRENT, MANY, Clock(((CURRENT, 0.5),)), later())
    assert result.best == CURRENT and result.ms_before == result.ms_after


def test_a_tile_that_goes_wrong_loses_the_race_and_nothing_else():
    bad = tuple(zip(MANY, ("hang", "die", "wrong", "memory"), strict=False))
    fast = tuple((tile, 0.1) for tile in MANY[:4]) + ((MANY[5], 1.0),)
    result = race(FORWARD, CURRENT, MANY, Clock(fast, bad), later(), sample_s=1.0)
    assert result.best == MANY[5] and result.finished
    assert result.lost == {
        MANY[0]: "no answer within 1 s",
        MANY[1]: "its process ended with signal SIGKILL",
        MANY[2]: "its result is not that of the current tile",
        MANY[3]: "OutOfMemoryError: no room at all",
    }


def test_without_the_current_tile_there_is_no_race():
    with pytest.raises(CannotStart, match="the current tile: its process ended with signal"):
        race(FORWARD, CURRENT, MANY, Clock(bad=((CURRENT, "die"),)), later())


def test_a_race_ends_with_its_time():
    start = time.monotonic()
    result = race(FORWARD, CURRENT, MANY, Clock(bad=((MANY[3], "hang"),)), later(1.5))
    assert not result.finished and result.ms_before is None and result.best == CURRENT
    assert time.monotonic() - start < 15


ENTRIES = plan.plan()[:3]


def run(folder, clock, entries=ENTRIES, seconds=math.inf, said=None):
    options = {"folder": folder, "seconds": seconds, "clock": clock, "capability": 90}
    say = (lambda text: None) if said is None else said.append
    return tune(entries, say=say, **options)


def test_tables_hold_the_winners_and_nothing_else_changes(tmp_path):
    entry = ENTRIES[1]
    winner = candidates(entry)[1]
    (made,) = run(tmp_path, Clock(((winner, 1.5),)), [entry])
    assert made.now == vars(winner) and made.was != made.now
    assert (made.ms_before, made.ms_after) == pytest.approx((5.0, 1.5), abs=1e-4)
    own, new = (tiles.read_file(x / "block_sparse.json") for x in (tile_tables.HOME, tmp_path))
    changed = [
        (kernel, place)
        for kernel in own
        for place, line in enumerate(own[kernel])
        if line != new[kernel][place]
    ]
    ((kernel, place),) = changed
    line = new[kernel][place]
    assert line["source"].startswith("fastest of ") and "test card" in line["source"]
    assert "1.5 ms, was 5 ms" in line["source"] and torch.__version__ in line["source"]
    expected = {**entry.key(90), **vars(winner), "source": line["source"]}
    assert kernel == "forward" and line == expected
    assert tables.current(tmp_path, entry, 90) == winner
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tuned.json", "block_sparse.json"]


def test_what_was_tuned_on_this_card_with_this_code_is_not_raced_again(tmp_path):
    said = []
    assert len(run(tmp_path, StandIn(), ENTRIES[:2])) == 2
    again = run(tmp_path, StandIn(), said=said)
    assert [made.entry for made in again] == ENTRIES[2:]
    assert said[0] == "2 entries already tuned here"
    assert run(tmp_path, StandIn()) == []
    assert [made.entry for made in run(tmp_path, Clock())] == ENTRIES
    journal = json.loads((tmp_path / ".tuned.json").read_text())
    assert len(journal) == 6
    journal[0]["made_by"]["code"] = "other"
    (tmp_path / ".tuned.json").write_text(json.dumps(journal[:3]))
    assert [made.entry for made in run(tmp_path, StandIn())] == ENTRIES[:1]


def test_it_stops_when_its_share_is_spent(tmp_path):
    said, start = [], time.monotonic()
    hanging = Clock(bad=tuple((tile, "hang") for tile in candidates(ENTRIES[0])))
    made = run(tmp_path, hanging, seconds=1.0, said=said)
    assert time.monotonic() - start < 15
    assert len(made) <= 1 and said[-1].startswith("the time is up: ")
    assert not (tmp_path / ".tuned.json").exists() and not list(tmp_path.glob("*.json"))
    assert run(tmp_path, StandIn(), seconds=0.0) == []


def test_the_same_clock_gives_the_same_tables(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        run(tmp_path / folder, StandIn())
    names = sorted(path.name for path in (tmp_path / "a").glob("*.json"))
    assert names and names == sorted(path.name for path in (tmp_path / "b").glob("*.json"))
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_results_are_the_same_to_rounding_only():
    expected = torch.randn(100, generator=torch.Generator().manual_seed(0))
    expected[3] = -math.inf
    assert close(expected * (1 + 1e-6), expected)
    assert not close(expected * (1 + 1e-4), expected)
    assert close((expected * (1 + 4e-4)).half(), expected.half())
    wrong = expected.clone()
    wrong[5] = math.nan
    assert not close(wrong, expected)


WITHOUT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else found(name, *a)
sys.meta_path.insert(0, Block())
from experiments.tuning.clocks import StandIn
from experiments.tuning.plan import plan
from experiments.tuning.tune import tune
print(len(plan()), tune(plan(), folder=".", seconds=9.0, clock=StandIn(), capability=90))
"""


def test_without_triton_it_says_so():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    told = "nothing to tune: the package triton is not installed"
    assert done.stdout.splitlines() == [told, "86 []"], done.stderr[-2000:]


COMPILED = """
import json, math, sys
from experiments.tuning.clocks import StandIn
from experiments.tuning.plan import Entry, call_of
from experiments.tuning.tune import _judged, tune
from models.kernels.tiles import Tile
entry = Entry("hop", "backward_kv", 32, 32)
options = dict(folder=sys.argv[1], clock=StandIn(), capability=90, say=lambda text: None)
made = tune([entry], seconds=math.inf, processes=2, **options)
print(json.dumps([made[0].note.split(" on ")[0], made[0].was, made[0].now]))
((left, out),) = _judged([(entry, Tile(32, 32, 4, 2))], 90, 1, 0.0)
print(json.dumps([left, sorted(set(out.values()))]))
"""


def test_candidates_are_compiled_ahead_and_the_faulty_do_not_race(tmp_path):
    """In a process that does not interpret; what its time leaves uncompiled does not race."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", COMPILED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    (note, was, now), late = map(json.loads, done.stdout.splitlines())
    assert note == "fastest of 3 (1 out)" or note == "fastest of 4 (0 out)"
    assert was != now or Tile(**was) == Tile(32, 32, 4, 2)
    assert late == [[], ["the time was up before it"]]
    # The whole pass too, with which a race begins, lies ready.
    names = {path.name for path in (tmp_path / "cache").rglob("*.cubin")}
    assert {"backward_q.cubin", "backward_kv.cubin", "kernel.cubin"} <= names
