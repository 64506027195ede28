"""What a case is expected to cost: FLOPs held to the tensors', seconds to published records."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from experiments import cost, grid, rounds
from experiments.__main__ import main
from experiments.case import Case
from experiments.cost.rates import PATH, device
from experiments.plain_yaml import loads
from experiments.procedures import case_from
from experiments.workload import build
from models.registry import VARIANTS

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
BASE = {"batch": 2, "seq_len": 256, "heads": 4, "head_dim": 8, "dtype": "float32"}
BRANCHES = {"segment_lengths": [64, 96], "dilation_rates": [1, 3]}
BLOCKS = {"pattern": "dilated", "sparsity": 0.7, "block_size": 16}
RANKS = {"world_size": 4, "simulated": True}


def _case(variant, **fields):
    shape = {**BASE, "is_causal": True, "pass": "forward", **fields}
    return Case.from_mapping({"variant": variant, **shape})


EXACT = [
    _case("dense"),
    _case("dense-eager", is_causal=False, seq_len=200, kv_heads=2),
    *(
        _case("dilated-gather", seq_len=n, is_causal=causal, **{"pass": passes}, **BRANCHES)
        for n in (50, 200, 256)
        for causal in (False, True)
        for passes in ("forward", "forward_backward")
    ),
    _case("head-partitioned", **BRANCHES),
    _case("multihead-dilated-sdpa", heads=8, kv_heads=4, **BRANCHES),
    _case("multihead-dilated-gather", heads=4, **BRANCHES, **{"pass": "forward_backward"}),
    *(
        _case("block-sparse", is_causal=causal, **{**BLOCKS, "pattern": pattern})
        for causal in (False, True)
        for pattern in ("local_window", "dilated", "global_local", "strided", "random", "top_k")
    ),
]
NEARLY = [
    _case("block-sparse", seq_len=1000, **BLOCKS),
    *(
        _case(variant, is_causal=causal, seq_len=1024, **RANKS)
        for causal in (False, True)
        for variant in ("ring-standard", "ring-distributed", "ring-hilbert", "ring-morton")
    ),
    _case("ring-dilated", segment_lengths=[64, 256], dilation_rates=[1, 4], **RANKS),
    _case("ring-block-sparse", seq_len=2048, **BLOCKS, **RANKS),
]


def _ids(cases):
    return [f"{c.variant}-{c.seq_len}-{c.pattern}-{c.is_causal}-{c.pass_}" for c in cases]


@pytest.mark.parametrize("case", EXACT, ids=_ids(EXACT))
def test_flops_are_those_of_the_workload(case):
    assert cost.useful_flops(case) == build(case, "cpu").useful_flops()


@pytest.mark.parametrize("case", NEARLY, ids=_ids(NEARLY))
def test_flops_of_short_blocks_and_rings_are_near_those_of_the_workload(case):
    assert cost.useful_flops(case) == pytest.approx(build(case, "cpu").useful_flops(), rel=0.03)


def _published():
    """(path, record, task, expected cost) of every published record."""
    tasks = {tier: {t.case: t for t in grid.tasks(tier)} for tier in grid.TIERS}
    for path in sorted(PUBLISHED.rglob("*.json")):
        record = json.loads(path.read_text())
        machine = record["machine"]
        if machine["device_kind"] != "cpu":
            continue
        case = case_from({"variant": record["variant"], **record["case"]})
        # Those from before there were rounds have several replicates.
        options = {"cores": machine["cores"], "replicates": len(record["replicates"]) or 1}
        task = tasks[record["tier"]][case]
        expected = cost.seconds(case, task.limits, "cpu", machine["device"], **options)
        yield path, record, task, expected


def test_flops_of_every_published_record():
    for _, record, task, _ in _published():
        if record["useful_flops"] is not None:
            expected = pytest.approx(record["useful_flops"], rel=0.02)
            assert cost.useful_flops(task.case) == expected, task.case


def test_seconds_of_published_records(monkeypatch):
    """Every round within a factor 3 of what it took: hosts of one name differ by as much."""
    # The code does not change meanwhile.
    monkeypatch.setattr(rounds, "code_digest", cache(rounds.code_digest))
    sums, ratios = {}, []
    for path, record, task, expected in _published():
        if rounds.current(path, task.case, task.procedure):
            key = path.parts[-3:-1]
            predicted, taken = sums.get(key, (0.0, 0.0))
            sums[key] = predicted + expected.total, taken + record["wall_s"]
            ratios.append(expected.total / record["wall_s"])
    if not sums:
        pytest.skip("no published record is of today's code")
    for key, (predicted, taken) in sums.items():
        assert taken / 3 < predicted < 3 * taken, (key, predicted, taken)
    assert statistics.median(max(r, 1 / r) for r in ratios) < 1.5
    # Hosts of one name differ: by 1.6 and more.
    assert 1 / 1.5 < statistics.median(ratios) < 1.5


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "case",
    [
        _case("dense", head_dim=64),
        _case("dilated-sdpa", head_dim=64, **BRANCHES),
        _case("block-sparse", head_dim=64, **{**BLOCKS, "block_size": 64}),
        _case("ring-distributed", head_dim=64, **RANKS),
        _case("dilated-streamed", head_dim=64, **{**BRANCHES, "segment_lengths": [64, 256]}),
    ],
    ids=lambda case: case.variant,
)
def test_longer_costs_more(case, kind):
    limits = replace(grid.load("extreme").tiers["gpu"].limits, timeout_s=1e9, min_samples=3)
    costs = [
        cost.seconds(replace(case, seq_len=2**k), limits, kind, cores=2) for k in range(10, 21)
    ]
    for shorter, longer in zip(costs, costs[1:], strict=False):
        assert shorter.total < longer.total
        assert shorter.pass_ms < longer.pass_ms


def test_every_case_has_a_cost():
    for name in grid.names():
        for tier in grid.load(name).tiers.values():
            for kind in ("cpu", "cuda"):
                for case in tier.cases:
                    one = cost.seconds(case, tier.limits, kind, cores=2)
                    assert 0 < one.total < 1.001 * tier.limits.timeout_s and math.isfinite(
                        one.total
                    )
                    assert min(one.start_up, one.reference, one.untimed, one.samples) >= 0


def test_scores_that_do_not_fit_end_early():
    limits = grid.load("backends").tiers["gpu"].limits
    long = _case("dense-eager", batch=1, seq_len=131072, heads=8, head_dim=64, dtype="float16")
    found = cost.seconds(long, limits, "cuda")
    assert found.status == "oom" and found.samples == 0 and found.total < 10
    assert cost.seconds(replace(long, seq_len=16384), limits, "cuda").status == "ok"


def test_what_a_device_cannot_run_costs_a_start():
    limits = grid.load("backends").tiers["gpu"].limits
    assert cost.seconds(_case("dilated-triton", **BRANCHES), limits, "cpu").status == "unsupported"
    spread = _case("ring-distributed", world_size=4, simulated=False, dtype="float16")
    found = cost.seconds(spread, limits, "cuda")
    assert found.status == "unsupported" and found.total < 5


def test_replicates_and_samples_count():
    limits = replace(grid.load("comprehensive").tiers["laptop"].limits, timeout_s=1e6)
    case = _case("dense", batch=1, seq_len=8192, heads=8, head_dim=64)
    one, three = (cost.seconds(case, limits, "cpu", replicates=n, cores=2) for n in (1, 3))
    assert three.samples == pytest.approx(3 * one.samples)
    # Two samples a replicate, each a pass, where one is longer than what is asked for.
    assert one.samples == pytest.approx(2 * one.pass_ms / 1e3)
    assert cost.seconds(case, limits, "cpu", cores=4).pass_ms == pytest.approx(
        one.pass_ms / 2, 0.01
    )


def test_rates_are_read_as_pyyaml_reads_them():
    text = PATH.read_text()
    assert loads(text) == yaml.safe_load(text)


def test_every_variant_has_one_place_on_every_device():
    for kind in ("cpu", "cuda"):
        rates = device(kind)
        assert set(rates.families) | set(rates.unsupported) == set(VARIANTS)
        assert not set(rates.families) & set(rates.unsupported)


def test_unknown_devices():
    assert device("cuda", "NVIDIA Some Card") is device("cuda", "NVIDIA H100 80GB HBM3")
    with pytest.raises(ValueError, match="device_kind='tpu': expected one of cpu, cuda"):
        device("tpu")


def test_plan_prints_what_it_costs(capsys):
    assert main(["plan", "dilated", "--tier", "gpu"]) == 0
    out = capsys.readouterr().out
    assert "reference card, H100" in out and "about" in out
    assert main(["plan", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = [line for line in lines if line.startswith("comprehensive ")][-1]
    tiers = grid.load("comprehensive").tiers
    assert all(f"{len(tiers[t].cases)} cases" in row for t in grid.TIERS)
