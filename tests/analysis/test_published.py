"""What was published, looked up by system and shape: values, conditions, and what is refused."""

from collections import Counter

import pytest

from analysis import claims
from analysis.selection import published


def test_a_published_schedule_goes_on_where_it_is_a_rule():
    comprehensive, dilated, sparse = map(
        published.setting, ("comprehensive", "dilated", "block_sparse")
    )
    assert comprehensive.pattern(1024) == ((512, 512, 512), (1, 2, 4))
    assert comprehensive.pattern(16384) == ((1024, 2048, 4096), (1, 2, 4))
    assert dilated.pattern(4096) == ((1024, 2048, 4096), (1, 2, 4))
    assert dilated.pattern(16384) is None
    assert sparse.pattern(4096) is None
    assert sparse.blocks == ("dilated", 64)


def test_without_a_write_up_the_most_valuable_case_is_the_setting():
    fixed = published.setting("backends")
    assert (fixed.dtype, fixed.is_causal, fixed.heads, fixed.head_dim) == ("float16", False, 8, 64)


def test_published_figures_keep_the_decimals_they_were_printed_with():
    assert published.text("block_sparse", "block-sparse@90", 2, 4096, "speedup") == "5.80"
    assert published.text("block_sparse", "dense", 1, 8192, "memory") == "2,056.0"
    assert published.text("block_sparse", "dense", 1, 16384, "runs") == "OOM"
    assert published.text("block_sparse", "dense", 1, 16384, "time") is None
    assert published.text("dilated", "dilated-gather", 4, 8192, "throughput") == "55,049"
    # No speed-up was printed: the ratio of the printed times stands in.
    assert published.text("comprehensive", "dilated-sdpa", 2, 8192, "speedup") == "0.37"
    assert published.value("block_sparse", "block-sparse@98", 1, 8192, "speedup") == 4.52
    assert published.name("block-sparse@95") == "Block-Sparse (95 %)"
    assert published.name("block-sparse-flex@95") == "Block-Sparse (FlexAttention, 95 %)"
    assert published.name("ring") == "RingDilatedAttention"


def test_what_is_not_printed_is_nothing_and_what_does_not_exist_an_error():
    # A system that is measured but not published, a quantity that this write-up does not print.
    assert published.value("comprehensive", "dense", 1, 2048, "time") is None
    assert published.value("ring", "ring-hilbert", 2, 1024, "vram") is None
    assert published.text("ring", "ring-distributed", 2, 1024, "throughput") is None
    for asked, listed in [
        (("comprehensve", "dilated-sdpa", 1, 2048, "time"), "experiment: .* comprehensive"),
        (("comprehensive", "dilated-spda", 1, 2048, "time"), "system of .* dilated-sdpa"),
        (("block_sparse", "block-sparse@91", 1, 8192, "time"), "system of .* block-sparse@90"),
        (("comprehensive", "dilated-sdpa", 1, 2047, "time"), r"\(batch, seq_len\) .* \(1, 2048\)"),
        (("comprehensive", "dilated-sdpa", 3, 2048, "time"), r"\(batch, seq_len\) .* \(4, 2048\)"),
        (("comprehensive", "dilated-sdpa", 1, 2048, "tiem"), "quantity: .* time"),
        (("ring", "ring-hilbert", 2, 513, "memory_per_token"), r"\(2, 512\)"),
    ]:
        for look_up in (published.text, published.value):
            with pytest.raises(published.NotKnown, match=listed):
                look_up(*asked)
    with pytest.raises(published.NotKnown, match="quantity that grows"):
        published.growth("ring", "ring-hilbert", "time_share")
    with pytest.raises(published.NotKnown, match="expected one of dense"):
        published.name("dilated-spda")
    with pytest.raises(published.NotKnown, match="expected one of comprehensive"):
        published.shapes("dilatd")


def test_every_cell_of_the_published_tables_is_found():
    """As many figures of each quantity as the write-ups' tables have cells."""
    figures = claims.load(published.CLAIMS).by_subject
    assert Counter((about.writeup, about.quantity) for about in figures) == {
        ("comprehensive", "time"): 54,
        ("comprehensive", "std"): 18,
        ("comprehensive", "throughput"): 18,
        ("comprehensive", "memory"): 18,
        ("comprehensive", "speedup"): 15,
        **{("dilated", one): 6 for one in ("time", "std", "memory", "throughput")},
        ("dilated", "speedup"): 2,
        ("dilated", "vram"): 10,
        **{("dilated", one): 1 for one in ("gpu_time", "cpu_time", "gpu_over_cpu")},
        **{("dilated", one): 1 for one in ("gpu_throughput", "cpu_throughput")},
        ("block_sparse", "time"): 15,
        ("block_sparse", "memory"): 15,
        ("block_sparse", "speedup"): 12,
        ("block_sparse", "runs"): 4,
        ("block_sparse", "crossover"): 3,
        ("ring", "throughput"): 3,
        ("ring", "memory_per_token"): 3,
        ("overview", "time_share"): 3,
    }
