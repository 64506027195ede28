"""Tables and numbers of `ring`: published and measured, growth, scaling, traffic, peers, orders."""

import csv
import io
import math

import pytest

from analysis import catalogue
from analysis.experiments.ring import tables_of_orders
from analysis.experiments.ring import views as ring_views
from analysis.records import frame as records
from tests.analysis import synthetic, synthetic_ranks
from tests.analysis.synthetic_ranks import FIXED_BYTES, GAIN

SPEEDUP = 2**GAIN

# At 8192 tokens: dense, and a dense ring over two ranks.
DENSE_MS = 0.3 + synthetic.SPEED["dense"][0] * 8 ** synthetic.SPEED["dense"][1]
RING_MS = (0.3 + synthetic.RING[0] * 8 ** synthetic.RING[1]) / SPEEDUP


def _rows(frame, name, machine="auto") -> list[dict]:
    made = catalogue.tables("ring")[name](frame, machine)
    return list(csv.DictReader(io.StringIO(made.to_csv())))


def _median(**wanted) -> float:
    case = next(
        case
        for case in synthetic.cases("ring", "laptop")
        if all(getattr(case, name) == value for name, value in wanted.items())
    )
    return synthetic.median_ms(case, synthetic.CPU)


def test_tokens_a_second_stand_beside_the_published_best(laptop):
    rows = _rows(laptop, "single")
    assert [row["Length"] for row in rows] == ["1024"] * 5 + ["2048"] * 5 + ["4096"] * 5
    hilbert = rows[3]
    assert hilbert["Implementation"] == "HilbertRingAttention"
    assert hilbert["Tokens/s published"] == "304,971"
    time = _median(variant="ring-hilbert", seq_len=1024, is_causal=False, batch=2)
    assert float(hilbert["Tokens/s measured"]) == pytest.approx(1000 * 2 * 1024 / time)
    assert [row["Tokens/s published"] for row in rows[:3]] == [""] * 3
    assert rows[7]["Tokens/s published"] == "120,516"
    assert rows[11]["Tokens/s published"] == "21,416"
    low, value, high = (float(rows[4][f"Over dense{end}"]) for end in (" low", "", " high"))
    assert low < value < high
    assert value == pytest.approx(24.3 / 3.3)
    assert rows[0]["Over dense"] == ""


def test_memory_a_token_by_length_and_ranks(laptop):
    rows = _rows(laptop, "memory")
    alone = rows[0]
    assert (alone["System"], alone["Ranks"]) == ("StandardRingAttention", "1")
    assert alone["Published (KB/token)"] == "37.281"
    # Two tensors of 8 heads of 64 in float32, and a fixed part; the largest of three processes.
    expected = 1.004 * (2 * 8 * 64 * 4 + FIXED_BYTES / (2 * 512)) / 1024
    assert float(alone["512 (KiB/token)"]) == pytest.approx(expected, rel=1e-4)
    shared = [row for row in rows if row["Ranks"].endswith("simulated")]
    assert [row["Ranks"] for row in shared] == [f"{p}, simulated" for p in (2, 4, 8, 16)]
    for row, ranks in zip(shared, (2, 4, 8, 16), strict=True):
        expected = 1.004 * (2 * 8 * 64 * 4 / ranks + FIXED_BYTES / 16384) / 1024
        assert float(row["16K (KiB/token)"]) == pytest.approx(expected, rel=1e-4)
        assert float(row["n: k low"]) - 1e-6 <= 1 <= float(row["n: k high"]) + 1e-6


def test_memory_of_a_rank_is_shared_among_the_ranks(laptop):
    rows = _rows(laptop, "growth")
    assert [row["Length"] for row in rows] == ["2K", "4K", "8K", "16K"]
    assert {row["Ranks"] for row in rows} == {"simulated, 2–16"}
    assert [float(row["1/p: k"]) for row in rows] == pytest.approx([1] * 4, abs=0.01)


def test_memory_that_no_rank_saves_has_the_exponent_zero(laptop):
    rows = laptop[(laptop["experiment"] == "ring") & (laptop["variant"] == "ring-distributed")]
    (family,) = [f for f in ring_views.families(rows) if f.simulated]
    same = family.rows.assign(peak_memory_bytes=1e6 * family.rows["seq_len"])
    flat = ring_views.Family(family.variant, True, same)
    assert flat.memory_over_ranks(8192).exponent.value == pytest.approx(0, abs=0.01)
    squared = family.rows.assign(peak_memory_bytes=1e-3 * family.rows["seq_len"] ** 2.0)
    quadratic = ring_views.Family(family.variant, True, squared)
    assert quadratic.memory_over_lengths(4).exponent.value == pytest.approx(2, abs=0.01)
    assert flat.memory_over_ranks(1234) is None


def test_strong_scaling_is_over_one_rank_of_the_same_case(laptop):
    rows = _rows(laptop, "strong")
    forward = [r for r in rows if "training" not in r["Case"] and r["Length"] == "8K"]
    assert [r["System, order"].rpartition(", ")[2] for r in forward] == [
        "contiguous",
        "zigzag",
        "striped",
    ]
    for row in forward:
        assert float(row["Speed-up"]) == pytest.approx(SPEEDUP)
        assert float(row["Efficiency"]) == pytest.approx(SPEEDUP / 2)
        assert float(row["Speed-up low"]) / 2 == pytest.approx(float(row["Efficiency low"]))
        # Dense attention on both cores: synthetic.SPEED and synthetic.RING.
        assert float(row["Over dense"]) == pytest.approx(DENSE_MS / RING_MS, rel=1e-3)
        assert row["Waiting"] == "20.0 %"
    assert not any("simulated" in cell for row in rows for cell in row.values())
    assert not any("context_parallel" in row["System, order"] for row in rows)
    unpaired = next(r for r in rows if "causal" not in r["Case"])
    assert unpaired["Time, 1 rank (ms)"] == unpaired["Speed-up"] == ""


def test_weak_scaling_is_held_against_the_work_of_a_rank(laptop):
    rows = _rows(laptop, "weak")
    assert [(r["Tokens per rank"], r["Ranks"]) for r in rows] == [("4K", "2")] * 3
    # Causal pairs of 8,192 tokens, halved, over those of 4,096.
    work = 8193 / 4097
    assert [float(r["Work per rank"]) for r in rows] == pytest.approx([work] * 3)
    alone = _median(variant="ring-standard", seq_len=4096, world_size=1, is_causal=True)
    both = _median(variant="ring-standard", seq_len=8192, world_size=2, simulated=False)
    assert float(rows[0]["Times as long"]) == pytest.approx(both / alone)
    assert float(rows[0]["Efficiency"]) == pytest.approx(work * alone / both)


def test_traffic_is_a_share_of_the_dense_formula(laptop):
    rows = _rows(laptop, "traffic")
    share = {
        row["System"]: row["Share"]
        for row in rows
        if row["Ranks"] == "2" and "training" not in row["Case"]
    }
    assert share["StandardRingAttention"] == "100.0 %"
    assert share["RingDilatedAttention"] == "25.0 %"
    assert share["BlockSparseRingAttention (95 %)"] == "12.5 %"
    training = next(r for r in rows if "training" in r["Case"])
    assert float(training["Dense formula (KiB)"]) == 3 * 2 * 2048 * 8 * 64 * 4 / 1024
    simulated = [r for r in rows if r["Ranks"] == "16, simulated"]
    # A ring of many is shown at its longest length alone.
    assert [(r["Length"], r["Share"], r["Messages"]) for r in simulated] == [
        ("16K", "100.0 %", "30")
    ]
    assert not any("context_parallel" in row["System"] for row in rows)


def test_peers_stand_beside_ours_or_say_why_not(both):
    rows = _rows(both, "peers", synthetic.CPU)
    timed = [row for row in rows if row["Outcome"] == "timed"]
    assert {row["System"] for row in timed} == {
        "PyTorch context_parallel", "PyTorch context_parallel, rotating",
    }  # fmt: skip
    assert all(float(row["Ours faster by"]) == pytest.approx(1) for row in timed)
    assert all(0.7 < float(row["Error over ours"]) < 1.4 for row in timed)
    lost = [row for row in rows if row["Outcome"] != "timed"]
    assert {row["System"] for row in lost} == {"ring-attention-pytorch", "ring-flash-attn"}
    for row in lost:
        assert row["Time (ms)"] == "unsupported"
        assert row["Outcome"] == "unsupported on purpose"
        assert row["Ours faster by"] == row["Error over ours"] == ""


def test_orders_are_simulated_and_over_row_major(laptop):
    rows = _rows(laptop, "orders")
    assert [row["Order"] for row in rows] == 2 * ["row-major", "snake", "morton", "hilbert"]
    assert all(row["Ranks"] == "4, simulated" for row in rows)
    assert [row["Over row-major"] for row in rows[::4]] == ["", ""]
    assert float(rows[3]["Over row-major"]) == pytest.approx(1)
    assert float(rows[3]["Sent (KiB)"]) == 3 * 2 * 1024 * 8 * 64 * 4 / 1024


def test_a_curve_helps_a_grid_and_harms_a_text():
    grid = {
        curve: tables_of_orders.counted(curve, tables_of_orders.SIDE)
        for curve in tables_of_orders.CURVES
    }
    text = {curve: tables_of_orders.counted(curve, None) for curve in tables_of_orders.CURVES}
    assert grid["hilbert"].distinct_blocks == pytest.approx(7.5625)
    assert grid["row-major"].distinct_blocks == pytest.approx(8.6875)
    # Four shards of 16 rows: those in the middle need 4 rows of either side.
    assert grid["row-major"].received == pytest.approx((2 * 4 + 2 * 8) / 16 / 4)
    assert text["row-major"].received == pytest.approx(6 * 32 / 4096)
    assert text["hilbert"].distinct_blocks > 3 * text["row-major"].distinct_blocks


def test_the_model_is_called_modelled_and_names_its_constants(laptop):
    made = catalogue.tables("ring")["model"](laptop, "auto")
    assert made.caption.endswith("modelled")
    assert made.note.startswith("Modelled, not measured")
    assert "270 GB/s" in made.note and "50 GB/s" in made.note and "nominal" in made.note


@pytest.mark.parametrize("name", catalogue.tables("ring"))
def test_tables_are_made_whatever_was_measured(both, smoke, nothing, name):
    for frame in (both, smoke, nothing):
        assert catalogue.tables("ring")[name](frame, "auto").to_markdown()


# --- Numbers -----------------------------------------------------------------------------------


def test_numbers_of_one_device(numbers_of):
    found = numbers_of("laptop", "ring")
    rate = found["ring.single.throughput.ring-standard.n2048"]
    time = _median(variant="ring-standard", seq_len=2048, is_causal=False, batch=2)
    assert rate["value"] == pytest.approx(1000 * 2 * 2048 / time)
    assert rate["low"] < rate["value"] < rate["high"]
    assert found["ring.published.throughput.ring-standard.n4096"]["text"] == "21,416"
    # Three names of one computation.
    assert found["ring.single.spread.n1024"]["value"] == pytest.approx(1)
    assert found["ring.single.spread.n1024.word"]["text"].startswith("as fast as")
    assert found["ring.memory.per_token.ring-hilbert"]["value"] == pytest.approx(4.11, abs=0.01)
    assert found["ring.published.memory.per_token.ring-hilbert"]["text"] == "21.031"


def test_numbers_over_ranks(numbers_of):
    found = numbers_of("laptop", "ring")
    assert found["ring.strong.ring-distributed.speedup"]["value"] == pytest.approx(SPEEDUP)
    assert found["ring.strong.ring-distributed.tokens"]["value"] == 8192
    assert found["ring.strong.ring-distributed.ranks"]["value"] == 2
    assert found["ring.strong.ring-distributed.waiting"]["text"] == "20.0 %"
    assert found["ring.strong.ring-distributed.efficiency"]["value"] == pytest.approx(SPEEDUP / 2)
    assert found["ring.traffic.ring-dilated.share"]["value"] == synthetic_ranks.SENT["branches"]
    assert found["ring.traffic.ring-dilated.sent"]["value"] == 8
    # From 2 ranks to 16, whose shares are an eighth.
    assert found["ring.memory.over_ranks"]["value"] == pytest.approx(8, rel=0.05)
    ranks = [found[f"ring.memory.over_ranks.{key}"]["text"] for key in ("few", "many", "ideal")]
    assert ranks == ["2", "16", "8"]
    assert found["ring.memory.over_ranks.kind"]["text"] == "simulated"
    assert found["ring.memory.over_length.at"]["value"] == 16
    assert found["ring.orders.ring-hilbert"]["value"] == pytest.approx(1)
    assert found["ring.model.break_even.dense.nvlink"]["text"] == "1,852"


def test_numbers_of_what_could_not_be_timed(numbers_of):
    found = numbers_of("both", "ring", synthetic.CPU)
    assert found["ring.peers.ring-flash-attn-zigzag.outcome"]["text"] == "unsupported"
    assert found["ring.peers.torch-context-parallel-alltoall.outcome"]["text"] == "timed"
    empty = numbers_of("nothing", "ring")
    assert empty["ring.strong.ring-distributed.speedup"]["text"] == "–"
    assert empty["ring.memory.over_ranks"]["value"] is None


def test_a_ring_of_one_length_is_in_no_fit(smoke):
    rows = records.of_experiment(smoke, "ring")
    for family in ring_views.families(rows):
        assert all(family.memory_over_ranks(n) is None for n in family.lengths)
    assert math.isnan(rows[rows["variant"] == "dense"]["world_size"].iloc[0])
