"""Cases of training for the tests of `quality`, whatever its grid has, and a frame of them."""

from pathlib import Path

import pandas as pd

from analysis.experiments.quality import naming
from analysis.records import frame as records
from experiments.training.case import TrainingCase
from tests.analysis import synthetic

SHAPE = {
    **{"batch": 4, "heads": 4, "kv_heads": 4, "head_dim": 16, "dtype": "float32"},
    **{"is_causal": True, "pass_": "forward_backward"},
}
# Shares of the length, and rates.
MAIN, WHOLE = ((16, 8, 4), (1, 2, 4)), ((4, 1), (1, 4))
MAIN_SLUG, WHOLE_SLUG = "dilated-sdpa-n16+8+4-r1+2+4", "dilated-sdpa-n4+1-r1+4"
TEXT, RECALL = ("text-smoke", 256), ("recall-smoke", 128)


def case(variant: str, recipe: str, seq_len: int, **fields) -> TrainingCase:
    """A case of the shape that all have."""
    return TrainingCase(variant=variant, recipe=recipe, seq_len=seq_len, **SHAPE, **fields)


def branched(at: tuple[str, int], shares, variant: str = "dilated-sdpa", **fields) -> TrainingCase:
    """A case with branches."""
    parts, rates = shares
    lengths = tuple(at[1] // part for part in parts)
    return case(variant, *at, segment_lengths=lengths, dilation_rates=rates, **fields)


def blocks(at: tuple[str, int], pattern: str, sparsity: float = 0.9, size: int = 4) -> TrainingCase:
    """A case with a block mask."""
    fields = {"pattern": pattern, "sparsity": sparsity, "block_size": size}
    return case("block-sparse-sdpa", *at, **fields)


def lesson(at: tuple[str, int]) -> list[TrainingCase]:
    """Every kind of system, at one length."""
    return [
        case("dense", *at),
        branched(at, MAIN),
        branched(at, WHOLE),
        branched(at, MAIN, head_offset="block"),
        branched(at, MAIN, "dilated-detached"),
        blocks(at, "local_window"),
        blocks(at, "local_window", 0.95),
        blocks(at, "random"),
        blocks(at, "top_k"),
    ]


def all_cases() -> list[TrainingCase]:
    """A lesson of text and one of recall, and text at shorter lengths."""
    shorter = [
        one for n in (64, 128) for one in (case("dense", TEXT[0], n), branched((TEXT[0], n), MAIN))
    ]
    return [*lesson(TEXT), *lesson(RECALL), *shorter]


def write(root: Path, cases, machine: str, lost=()) -> None:
    """Records of three rounds; those of the slugs in `lost` are out of time."""
    tier = "gpu" if machine == synthetic.GPU else "laptop"
    for number in range(1, synthetic.ROUNDS + 1):
        for one in cases:
            status = "timeout" if naming.slug(one.cells()) in lost else "ok"
            record = synthetic.record(one, tier, machine, status, number)
            synthetic.place(root, record, number).write_text(synthetic.json.dumps(record))


def load(root: Path, monkeypatch) -> pd.DataFrame:
    """Their frame, as if the grid of `quality` had these cases."""
    monkeypatch.setattr(records.grid, "experiments_of", lambda _: ("quality",))
    return records.load(synthetic.vouch(root))
