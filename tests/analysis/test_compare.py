"""Two sets of records side by side: joined case by case, block masks kept apart."""

import json
import math
import shutil

import pytest
from analysis.across.compare import compare

from analysis.records import frame as records
from tests.analysis import synthetic


def test_a_case_is_compared_with_itself_by_its_blocks(laptop_root, tmp_path):
    other = shutil.copytree(laptop_root, tmp_path / "published")
    changed = list(other.rglob("block-sparse_*-0.95-*.json"))
    for path in changed:
        data = json.loads(path.read_text())
        for replicate in data["replicates"]:
            replicate["samples_ms"] = [ms / 2 for ms in replicate["samples_ms"]]
        path.write_text(json.dumps(data))
    lines = compare(laptop_root, other).splitlines()
    cases = [line for line in lines if " tokens, " in line]
    faster = [line for line in cases if line.endswith("*")]
    assert len(faster) == len({path.name for path in changed})
    assert all("block-sparse@95" in line and ": 2.00 [" in line for line in faster)
    assert sum("random blocks of 64" in line for line in cases) == 1
    assert sum(": 1.00 [" in line for line in cases) == len(cases) - len(faster)


def test_of_two_rounds_there_are_ratios_without_an_interval(laptop_root):
    machine = laptop_root / synthetic.CPU
    first, last = (machine / synthetic.round_name(number) for number in (1, 3))
    lines = compare(first, last).splitlines()
    cases = [line for line in lines if " tokens, " in line]
    ratios = [float(line.rpartition(": ")[2]) for line in cases]
    low, high = (synthetic.COMMON[0] - synthetic.COMMON[2] + sign * 0.011 for sign in (-1, 1))
    assert len(ratios) > 100
    assert all(math.exp(low) <= ratio <= math.exp(high) for ratio in ratios)
    mean = float(lines[-1].removeprefix("geometric mean: "))
    assert mean == pytest.approx(math.exp(-0.04), abs=0.003)


def test_nothing_in_common_is_an_error(tmp_path):
    synthetic.write(tmp_path / "a", "backends")
    synthetic.write(tmp_path / "b", "block_sparse")
    with pytest.raises(records.RecordsError, match="no case in common"):
        compare(tmp_path / "a", tmp_path / "b")


def test_between_sets_of_one_hour_only_rounds_differ(tmp_path):
    root = synthetic.write(tmp_path / "published", "backends")

    def mean(*hours):
        sides = []
        for side, times in zip("ab", (hours[:2], hours[2:]), strict=True):
            for number, hour in zip((1, 2), times, strict=True):
                folder = root / synthetic.CPU / synthetic.round_name(number)
                root_of_side = tmp_path / "-".join(map(str, hours)) / side / "local"
                began = f"2026-01-01T{hour:02}{10 * number:02}00Z"
                target = root_of_side / synthetic.CPU / began
                target.mkdir(parents=True)
                for path in folder.glob("*.json"):
                    minutes = f"{hour:02}:{10 * number:02}"
                    data = {
                        **json.loads(path.read_text()),
                        "started_at": f"2026-01-01T{minutes}:00Z",
                    }
                    (target / path.name).write_text(json.dumps(data))
            sides.append(root_of_side)
        text = compare(*sides).splitlines()[-1].removeprefix("geometric mean: ")
        return [float(x.strip("[], ")) for x in text.split()]

    together, apart = mean(3, 3, 3, 3), mean(3, 3, 5, 5)
    assert together[0] == apart[0] == 1
    assert apart[2] > 1.3 * together[2]
