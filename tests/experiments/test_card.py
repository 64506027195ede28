"""The cards of a record: as a stub of `nvidia-smi` tells of them, and what the gate makes of it."""

import os
import sys

import pytest

from experiments import card, gate, record, runner, schema
from experiments import grid as grids
from tests.analysis import synthetic, synthetic_cards

UUIDS = [f"GPU-{number}0000000-1111-2222-3333-44444444444{number}" for number in range(3)]
INSTANCES = [f"MIG-{number}0000000-5555-6666-7777-888888888888" for number in range(2)]
GONE = "[Requested functionality has been deprecated]"
# As two H200 and a workstation's card tell, the last with nothing to say of most.
QUERY = f"""\
0, {UUIDS[0]}, 00000000:1b:00.0, 1980, 3201, 1980, 3201, 1830, 3201, 700.00, Enabled, Disabled
1, {UUIDS[1]}, 00000000:43:00.0, 345, 3201, 1980, 3201, [N/A], [N/A], 650.50, Enabled, Enabled
2, {UUIDS[2]}, 00000000:52:00.0, [N/A], [Not Supported], [N/A], [N/A], {GONE}, [N/A], [N/A], -, -
"""
LIST = f"""\
GPU 0: NVIDIA H200 (UUID: {UUIDS[0]})
GPU 1: NVIDIA H200 (UUID: {UUIDS[1]})
  MIG 1g.18gb     Device  0: (UUID: {INSTANCES[0]})
  MIG 1g.18gb     Device  1: (UUID: {INSTANCES[1]})
GPU 2: NVIDIA H200 (UUID: {UUIDS[2]})
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Writes the stub; it notes each call, whose count is what is returned."""
    calls = tmp_path / "calls"

    def write(query=QUERY, listed=LIST, status=0):
        stub = tmp_path / "nvidia-smi"
        stub.write_text(
            f"#!{sys.executable}\n"
            "import sys\n"
            f"open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            f"sys.stdout.write({listed!r} if sys.argv[1:] == ['-L'] else {query!r})\n"
            f"sys.exit({status})\n"
        )
        stub.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        card._parents.cache_clear()
        return lambda: calls.read_text().splitlines() if calls.exists() else []

    yield write
    card._parents.cache_clear()


def test_the_card_that_is_held_is_told_by_one_call(smi, monkeypatch):
    calls = smi()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS[0])
    (found,) = card.held("cuda:0", 1)
    assert found == {
        "instance": None,
        "index": 0,
        "uuid": UUIDS[0],
        "bus_id": "00000000:1B:00.0",
        "sm_mhz": 1980,
        "memory_mhz": 3201,
        "max_sm_mhz": 1980,
        "max_memory_mhz": 3201,
        "application_sm_mhz": 1830,
        "application_memory_mhz": 3201,
        "power_limit_w": 700.0,
        "ecc": True,
        "mig": False,
    }
    assert len(calls()) == 1 and calls()[0].startswith("--query-gpu=index,uuid,pci.bus_id,")
    schema.Card.model_validate(found)


def test_what_the_driver_does_not_tell_is_null(smi, monkeypatch):
    smi()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS[2])
    (found,) = card.held("cuda:2", 1)
    known = {"index": 2, "uuid": UUIDS[2], "bus_id": "00000000:52:00.0"}
    assert found == dict.fromkeys(found) | known
    schema.Card.model_validate(found)


def test_a_ring_names_all_its_cards_and_a_single_case_the_first(smi, monkeypatch):
    smi()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join([UUIDS[2], UUIDS[0]]))
    assert [one["index"] for one in card.held("cuda:2", 2)] == [2, 0]
    assert [one["index"] for one in card.held("cuda:2", 1)] == [2]
    both = card.held("cuda:2", 2)
    assert card.identity(both) == card.identity(both[::-1]) == f"{UUIDS[0]}+{UUIDS[2]}"
    # As a scheduler sets it; as it begins; and where nothing is set, by the lease's own name.
    for visible, device, index in (("1", "cuda:0", 1), (UUIDS[2][:6], "cuda", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert card.held(device, 1)[0]["index"] == index
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [one["index"] for one in card.held("cuda:1", 2)] == [1, 2]
    assert card.held("cpu", 1) is None and card.identity(None) == ""


def test_an_instance_is_a_part_of_its_card(smi, monkeypatch):
    calls = smi()
    old = f"MIG-{UUIDS[0]}/3/0"
    for name, index in ((INSTANCES[1], 1), (old, 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        (found,) = card.held("cuda:0", 1)
        assert (found["instance"], found["index"], found["uuid"]) == (name, index, UUIDS[index])
        assert card.identity([found]) == name
        schema.Card.model_validate(found)
    # Which card an instance is of is asked once.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", INSTANCES[0])
    assert card.held("cuda:0", 1)[0]["index"] == 1
    assert calls().count("-L") == 1 and len(calls()) == 4


@pytest.mark.parametrize("how", [{"status": 9}, {"query": ""}, {"query": "no devices\n"}])
def test_a_driver_that_tells_nothing_leaves_the_name_that_the_lease_gave(smi, monkeypatch, how):
    smi(**how)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS[1])
    (found,) = card.held("cuda:1", 1)
    assert found == dict.fromkeys(found) | {"uuid": UUIDS[1]}
    for name in ("1", INSTANCES[0] if "query" not in how else "GPU-no"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        assert card.held("cuda:1", 1) is None


def test_a_case_is_recorded_with_its_card_and_the_gauge_of_another_is_not_its_own(
    smi, monkeypatch, tmp_path
):
    smi()
    (task, *_) = grids.tasks("smoke", ["dilated"])
    made, gauges = [], iter(range(1, 9))
    here = runner.describe("cpu")
    one = runner._Pass("quick", here, "cuda", tmp_path, "round-1", None, None)
    monkeypatch.setattr("experiments.runner.cost.seconds", lambda *_, **__: _Cost)
    monkeypatch.setattr("experiments.runner.describe", lambda device: here)
    monkeypatch.setattr(one, "gauge", lambda: dict.fromkeys(_GAUGE, float(next(gauges))))
    monkeypatch.setattr("experiments.gauge.ceilings_beside", lambda *_: None)

    def supervise(*_, cards, **__):
        return {"status": "failed", "reason": "why", "machine": {"cards": cards}}

    monkeypatch.setattr("experiments.supervise.supervise", supervise)
    monkeypatch.setattr(runner.record, "write", lambda path, found: made.append(found))
    for uuid in (UUIDS[0], UUIDS[0], UUIDS[1]):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid)
        one.measure(task, "", here, card.held("cuda", 1))
    assert [found["machine"]["cards"][0]["uuid"] for found in made] == [*2 * UUIDS[:1], UUIDS[1]]
    pairs = [(x["gauges"]["before"]["copy_ms"], x["gauges"]["after"]["copy_ms"]) for x in made]
    assert pairs == [(1.0, 2.0), (2.0, 3.0), (4.0, 5.0)]


_GAUGE = ("dense_ms", "matmul_ms", "copy_ms")


class _Cost:
    total = 1.0


def test_a_neighbours_gauge_is_that_of_the_same_card(tmp_path):
    here = runner.describe("cpu")
    one = runner._Pass("quick", here, "cuda", tmp_path, "round-1", None, None)
    gauge = dict.fromkeys(_GAUGE, 2.0)
    path = tmp_path / here.id / "round-1" / "a.json"
    path.parent.mkdir(parents=True)
    cards = [{"instance": None, "uuid": UUIDS[0]}]
    record.write(path, {"gauges": {"before": gauge, "after": gauge}, "machine": {"cards": cards}})
    assert one.neighbours_gauge(UUIDS[0]) == gauge and one.neighbours_gauge(UUIDS[1]) is None
    for broken in ([{}], "GPU-0", [{"instance": 1, "uuid": UUIDS[0]}]):
        record.write(path, {"machine": {"cards": broken}})
        assert record.read(path) is None


FOUND = {
    "instance": None, "index": 0, "uuid": UUIDS[0], "bus_id": "00000000:1B:00.0", "sm_mhz": 345,
    "memory_mhz": 3201, "max_sm_mhz": 1980, "max_memory_mhz": 3201, "application_sm_mhz": None,
    "application_memory_mhz": None, "power_limit_w": 700.0, "ecc": True, "mig": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def valid():
    case = next(one for one in synthetic.cases("dilated", "gpu") if one.variant == "dense")
    return synthetic_cards.record(case, synthetic_cards.H200)


def admitted(valid, cards, status="ok", **changed):
    machine = {**valid["machine"], "cards": cards, **changed}
    gate.check_result("it", schema.check({**valid, "machine": machine}, "it"))


def test_records_with_and_without_cards_pass(valid):
    admitted(valid, [FOUND])
    admitted(valid, None)
    admitted(valid, [dict.fromkeys(FOUND) | {"uuid": UUIDS[0]}])
    found = FOUND | {"instance": INSTANCES[0], "mig": True}
    admitted(valid, [found])
    gate.check_result("it", schema.check(valid, "it"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"uuid": "GPU-0"}, "machine.cards.0.uuid: String should match"),
        ({"uuid": UUIDS[0] + "\n"}, "machine.cards.0.uuid: String should match"),
        ({"uuid": None}, "machine.cards.0.uuid: Input should be"),
        ({"instance": "MIG-<b>"}, "machine.cards.0.instance: String should match"),
        ({"instance": INSTANCES[0]}, "machine.cards.0.instance: expected null, the card is not"),
        (
            {"instance": f"MIG-{UUIDS[1]}/1/0", "mig": True},
            "machine.cards.0.instance: is of another card",
        ),
        ({"bus_id": "=1+1"}, "machine.cards.0.bus_id: String should match"),
        ({"bus_id": "00000000:1b:00.0"}, "machine.cards.0.bus_id: String should match"),
        ({"index": -1}, "machine.cards.0.index: Input should be greater"),
        ({"sm_mhz": 5000}, "machine.cards.0.sm_mhz: is 5000, and 1980 is the highest"),
        ({"application_sm_mhz": 3000}, "machine.cards.0.application_sm_mhz: is 3000, and 1980"),
        ({"max_memory_mhz": 10**6}, "machine.cards.0.max_memory_mhz: Input should be less"),
        ({"power_limit_w": 0}, "machine.cards.0.power_limit_w: Input should be"),
        ({"power_limit_w": 1e6}, "machine.cards.0.power_limit_w: Input should be"),
        ({"ecc": "Enabled"}, "machine.cards.0.ecc: Input should be a valid boolean"),
        ({"name": "x"}, "machine.cards.0.name: Extra inputs"),
    ],
)
def test_a_card_that_cannot_be_is_refused(valid, changed, told):
    with pytest.raises(record.RecordError, match="^it: ") as refused:
        admitted(valid, [FOUND | changed])
    assert str(refused.value).startswith(f"it: {told}")


def test_as_many_cards_as_a_case_holds_each_once(valid):
    other = FOUND | {"uuid": UUIDS[1], "index": 1, "bus_id": "00000000:43:00.0"}
    for cards, told in (
        ([FOUND, other], "machine.cards: expected 1, which the case holds"),
        ([FOUND, FOUND], "machine.cards: two have the same index"),
        ([FOUND, other | {"bus_id": FOUND["bus_id"]}], "machine.cards: two have the same bus_id"),
        ([FOUND, other | {"uuid": UUIDS[0]}], "machine.cards: two are the same card"),
        ([], "machine.cards: List should have at least 1 item"),
    ):
        with pytest.raises(record.RecordError) as refused:
            admitted(valid, cards)
        assert str(refused.value).startswith(f"it: {told}")


def test_a_ring_over_nodes_names_the_cards_of_each(valid):
    cases = (one for one in synthetic.cases("ring", "gpu") if one.is_spread)
    four = next(one for one in cases if one.world_size == 4)
    ring = synthetic_cards.record(four, synthetic_cards.H200)
    assert ring["status"] == "unsupported"
    on_nodes = [
        FOUND
        | {
            "uuid": f"{UUIDS[0][:-2]}{node}{place}",
            "index": place,
            "bus_id": f"00000000:{place}B:00.0",
        }
        for node in range(2)
        for place in range(2)
    ]
    admitted(ring, on_nodes, nodes=2)
    with pytest.raises(record.RecordError, match=r"^it: machine\.cards: two have the same index"):
        admitted(ring, on_nodes)
    for made, ranks, nodes in ((ring, 4, 3), (ring, 4, 8), (valid, 1, 2)):
        told = rf"machine\.nodes: expected 1 or a divisor of {ranks}"
        with pytest.raises(record.RecordError, match=told):
            admitted(made, None, nodes=nodes)
