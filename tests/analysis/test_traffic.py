"""What ranks sent and waited for, from made records: which rank speaks, and where none does."""

import json
import math

import pytest

from analysis.records import frame as records
from analysis.records import rank_columns
from tests.analysis import synthetic

NUMBERS = [
    *("measured_rank", "bytes_sent", "messages_sent"),
    *("compute_ms", "wait_ms", "wait_share"),
]
TWO = {
    "variant": "ring-distributed", "seq_len": 4096, "is_causal": True, "pass_": "forward",
    "world_size": 2, "simulated": False,
}  # fmt: skip


def _record(experiment="ring", machine=synthetic.CPU, status="ok", **wanted):
    tier = "gpu" if machine == synthetic.GPU else "laptop"
    case = next(
        case
        for case in synthetic.cases(experiment, tier)
        if all(getattr(case, key) == value for key, value in wanted.items())
    )
    return synthetic.record(case, tier, machine, status)


def _rank(number, compute, wait, sent=100, messages=2):
    return {
        "rank": number,
        "bytes_sent": sent,
        "messages_sent": messages,
        "agreement_bytes": 104,
        "compute_ms": compute,
        "wait_ms": wait,
        "peak_memory_bytes": 1,
    }


@pytest.fixture
def row(tmp_path):
    """A record as a dict -> its row of the frame."""

    def load(data):
        path = synthetic.place(tmp_path, data)
        path.write_text(json.dumps(data))
        return records.load(path).iloc[0]

    return load


def test_the_slowest_rank_speaks_and_the_median_of_replicates(row):
    data = _record(**TWO)
    # Shares of the slowest rank, which is not the same one each time: 0.5, 0.1, 0.3.
    replicates = (
        [_rank(0, [2.0, 3.0], [5.0], sent=700), _rank(1, [4.0, 4.0], [1.0])],
        [_rank(0, [1.0, 1.0], [1.0]), _rank(1, [4.0, 5.0], [1.0], sent=900, messages=6)],
        [_rank(0, [3.0, 4.0], [3.0]), _rank(1, [9.0, 0.5], [0.0])],
    )
    data["replicates"] = [data["replicates"][0] | {"ranks": ranks} for ranks in replicates]
    found = row(data)
    assert found["wait_share"] == pytest.approx(0.3)
    assert (found["compute_ms"], found["wait_ms"]) == (7.0, 3.0)
    # What was sent is the largest of any rank in any replicate.
    assert (found["bytes_sent"], found["messages_sent"]) == (900, 6)
    first, *_ = rank_columns.by_replicate(found["ranks"])
    assert rank_columns.slowest(first)["rank"] == 0
    assert rank_columns.busy_ms(rank_columns.slowest(first)) == 10


def test_of_simulated_ranks_one_is_weighed_and_all_are_counted(row):
    data = _record(variant="ring-distributed", world_size=4, simulated=True)
    for replicate in data["replicates"]:
        ranks = [_rank(number, [1.0], [], sent=100 * number) for number in (3, 2, 1, 0)]
        for one in ranks:
            one["peak_memory_bytes"] = 7 if one["rank"] == 1 else None
        replicate["ranks"] = ranks
    found = row(data)
    assert found["system"] == "ring-distributed/p4-simulated"
    assert (found["measured_rank"], found["bytes_sent"]) == (1, 300)
    assert found[["compute_ms", "wait_ms", "wait_share"]].isna().all()
    for replicate in data["replicates"]:
        for one in replicate["ranks"]:
            one["peak_memory_bytes"] = None
    assert math.isnan(row(data)["measured_rank"])


def test_one_rank_has_nobody_to_wait_for_or_send_to(row):
    found = row(_record(**TWO | {"world_size": 1}))
    assert (found["system"], found["world_size"]) == ("ring-distributed", 1.0)
    assert (found["bytes_sent"], found["messages_sent"], found["wait_share"]) == (0, 0, 0)


def test_bytes_of_half_precision_are_half(row):
    wanted = {"variant": "ring-distributed", "world_size": 2, "simulated": False}
    found = row(_record(machine=synthetic.GPU, **wanted))
    assert found["bytes_sent"] == 2 * found["seq_len"] // 2 * 8 * 64 * 2
    assert found[["compute_ms", "wait_ms", "wait_share"]].isna().all()


@pytest.mark.parametrize("status", ["oom", "timeout", "unsupported", "failed"])
def test_a_case_without_a_time_keeps_its_ranks_and_has_no_numbers(row, status):
    found = row(_record(status=status, **TWO))
    assert (found["system"], found["world_size"]) == ("ring-distributed/p2", 2.0)
    assert (found["ranks"], found["reason"]) == (None, f"{status} on purpose")
    assert found[NUMBERS].isna().all()


def test_a_record_older_than_blocks_ranks_and_ceilings_is_read(row):
    data = _record("comprehensive", variant="dense")
    for field in ("world_size", "simulated", "pattern", "sparsity", "block_size"):
        del data["case"][field]
    for replicate in data["replicates"]:
        del replicate["ranks"]
    del data["ceilings"]
    found = row(data)
    assert (found["system"], found["simulated"], found["ranks"]) == ("dense", None, None)
    assert math.isnan(found["world_size"]) and found[NUMBERS].isna().all()
    assert found["median_ms"] > 0


def test_numbers_of_ranks_are_cases_of_their_own(laptop):
    rows = laptop[(laptop["experiment"] == "ring") & (laptop["variant"] == "ring-distributed")]
    rows = rows[(rows["seq_len"] == 4096) & rows["is_causal"] & (rows["pass"] == "forward")]
    assert sorted(rows["system"]) == [
        "ring-distributed",
        "ring-distributed/p16-simulated",
        "ring-distributed/p2",
        "ring-distributed/p2-simulated",
        "ring-distributed/p4-simulated",
        "ring-distributed/p8-simulated",
    ]
