"""References kept between cases and rounds: what shares one, and that it is the one made anew."""

import os
from dataclasses import replace

import pytest
import torch

from experiments import check, machine, references, runner
from experiments.grid import Limits, Task
from experiments.procedures import choose, replica, streamed
from experiments.references import References
from experiments.workload import build

LIMITS = Limits(min_samples=2, max_samples=3, sample_seconds=0.01, timeout_s=60)


@pytest.fixture
def kept(tmp_path):
    return References(tmp_path / "kept")


def values(*found):
    """A `make` that gives one after another, and what it has given."""
    waiting, given = list(found), []

    def make():
        given.append(waiting.pop(0))
        return {"x": torch.tensor([given[-1]])}

    return make, given


def test_the_same_is_made_once(kept):
    make, given = values(1.0, 2.0, 3.0)
    asked = [kept.get(what, make)["x"].item() for what in ({"n": 1}, {"n": 2}, {"n": 1})]
    assert asked == [1.0, 2.0, 1.0] and given == [1.0, 2.0]
    assert References(kept.folder).get({"n": 2}, make)["x"].item() == 2.0


def test_nothing_is_kept_without_a_folder():
    make, given = values(1.0, 2.0)
    assert [References().get({}, make)["x"].item() for _ in range(2)] == [1.0, 2.0]


def test_one_that_cannot_be_read_is_made_anew(kept):
    make, given = values(1.0, 2.0)
    kept.get({}, make)
    (path,) = kept.folder.iterdir()
    for broken in (b"", b"nonsense", path.read_bytes()[:-30]):
        path.write_bytes(broken)
        given.clear()
        assert kept.get({}, values(7.0)[0])["x"].item() == 7.0
    assert kept.get({}, make)["x"].item() == 7.0


class Poisoned:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_one_that_would_run_code_is_made_anew_and_runs_none(kept, tmp_path):
    kept.get({}, values(1.0)[0])
    (path,) = kept.folder.iterdir()
    torch.save({"x": Poisoned(tmp_path / "run")}, path)
    assert kept.get({}, values(7.0)[0])["x"].item() == 7.0
    assert not (tmp_path / "run").exists()
    assert torch.load(path, weights_only=True)["x"].item() == 7.0


def test_what_was_used_least_recently_makes_room(kept, monkeypatch):
    def make():
        return {"x": torch.zeros(1000)}

    for n in range(3):
        kept.get({"n": n}, make)
        (newest,) = [p for p in kept.folder.iterdir() if p.stat().st_mtime > 1000]
        os.utime(newest, (n, n))
    size = newest.stat().st_size
    kept.get({"n": 0}, make)
    monkeypatch.setattr(references, "_ROOM_BYTES", 3 * size + 10)
    monkeypatch.setattr(references, "_PARTS", 2)
    kept.get({"n": 3}, make)
    again = []
    for n in (0, 3, 2, 1):
        kept.get({"n": n}, lambda n=n: again.append(n) or make())
    assert again == [1]
    kept.get({"n": 9}, lambda: {"x": torch.zeros(10_000)})
    assert max(p.stat().st_size for p in kept.folder.iterdir()) == size


def test_other_code_and_other_hosts_make_their_own(tmp_path, monkeypatch):
    here = machine.describe("cpu")
    first = references.of(tmp_path, here)
    first.get({}, values(1.0)[0])
    assert references.of(tmp_path, here).get({}, values(2.0)[0])["x"].item() == 1.0
    monkeypatch.setattr(references, "_code", lambda: "0" * 16)
    assert references.of(tmp_path, here).get({}, values(3.0)[0])["x"].item() == 3.0
    assert [p.name for p in (tmp_path / here.id / "references").iterdir()] == [
        f"{'0' * 16}-{here.host.id}"
    ]


def check_equal(one, other):
    """Two files of references hold the same."""
    one, other = torch.load(one), torch.load(other)
    assert one.pop("reference") == other.pop("reference")
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


SAME = [
    ({"variant": "dilated-gather"}, {"variant": "dilated-sdpa"}),
    ({"variant": "dilated-sdpa"}, {"variant": "ring-dilated", "world_size": 1, "simulated": True}),
    ({"variant": "dense"}, {"variant": "dense-eager"}),
    ({"variant": "block-sparse"}, {"variant": "block-sparse-sdpa"}),
]
OTHER = [
    {"variant": "head-partitioned"},
    {"variant": "multihead-dilated-sdpa"},
    {"variant": "dense"},
    {"seed": 1},
    {"is_causal": False},
    {"dtype": "float64"},
    {"batch": 1},
    {"kv_heads": 4},
    {"pass_": "forward_backward"},
    {"dilation_rates": (1, 2)},
]


@pytest.mark.parametrize(("one", "other"), SAME)
@pytest.mark.parametrize("pass_", ["forward", "forward_backward"])
def test_systems_of_one_pattern_share_a_reference(case, tmp_path, kept, one, other, pass_):
    works = [build(case(pass_=pass_, **fields), "cpu") for fields in (one, other)]
    assert works[0].identity() == works[1].identity()
    check.write_reference(works[0], tmp_path / "first.pt", kept.get)
    check.write_reference(works[1], tmp_path / "shared.pt", kept.get)
    check.write_reference(works[1], tmp_path / "anew.pt")
    assert len([*kept.folder.iterdir()]) == 2
    check_equal(tmp_path / "shared.pt", tmp_path / "anew.pt")


@pytest.mark.parametrize("changes", OTHER, ids=str)
def test_others_do_not(case, changes):
    work, other = build(case(), "cpu"), build(case(**changes), "cpu")
    assert work.identity() != other.identity()
    only_pattern = {"variant", "dilation_rates"} >= set(changes) and not other.module
    assert (work.identity(dense=True) == other.identity(dense=True)) == only_pattern


def test_masks_are_told_apart(case):
    given = {"variant": "block-sparse"}
    masks = [{}, {"sparsity": 0.75}, {"pattern": "local_window"}, {"block_size": 8}]
    told = [str(build(case(**given, **one), "cpu").identity()) for one in masks]
    assert len(set(told)) == 4


def test_a_part_of_a_batch_is_another_reference(case):
    whole = build(case(), "cpu")
    part = replace(whole, inputs=[x[:1] for x in whole.inputs])
    assert part.identity() != whole.identity()


@pytest.mark.parametrize(
    ("procedure", "variant"),
    [(replica, "published-head-partition"), (streamed, "dilated-streamed")],
)
def test_procedures_keep_theirs(case, tmp_path, kept, one_core, procedure, variant):
    one = case(variant=variant, kv_heads=4, is_causal=False, seq_len=64)
    known = [
        procedure.make_reference(one, "cpu", tmp_path / name, get)
        for name, get in (("first", kept.get), ("again", kept.get), ("anew", check.anew))
    ]
    assert known[0] == known[1] == known[2]
    for name in ("again", "anew"):
        check_equal(tmp_path / name, tmp_path / "first")


def test_a_further_round_takes_them(case, tmp_path, no_lock):
    one = case(seq_len=64)
    task = Task(one, ("dilated",), choose(one.variant), LIMITS)
    measure = {"device": "cpu", "out": tmp_path}
    (first,) = runner.run([task], "smoke", round_="round-1", **measure)
    assert '"ok"' in first.read_text()
    # Were they made anew, the case would pass.
    for path in (tmp_path / machine.describe("cpu").id / "references").rglob("*.pt"):
        found = torch.load(path)
        if "out" in found:
            torch.save({**found, "out": found["out"] + 1}, path)
    (second,) = runner.run([task], "smoke", round_="round-2", **measure)
    assert '"failed"' in second.read_text()
    assert "output: relative error" in second.read_text()
