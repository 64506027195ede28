"""Small cases of training, for the tests of what trains."""

from experiments.training.case import TrainingCase
from models.registry import VARIANTS

PATTERNS = {
    "branches": {"segment_lengths": (8, 32), "dilation_rates": (1, 4)},
    "blocks": {"pattern": "local_window", "sparsity": 0.5, "block_size": 4},
}
# Those that run on any CPU.
DILATED = ("dilated-gather", "dilated-sdpa", "dilated-masked", "dilated-detached")
BLOCKS = ("block-sparse-sdpa", "block-sparse-masked")
ON_A_CPU = ("dense", "dense-eager", *DILATED, "head-partitioned", *BLOCKS)


def training_case(**changes) -> TrainingCase:
    """A case with what its variant takes; keyword arguments replace fields."""
    fields = {
        "variant": "dilated-sdpa",
        "batch": 2,
        "seq_len": 32,
        "heads": 2,
        "kv_heads": changes.get("heads", 2),
        "head_dim": 8,
        "dtype": "float32",
        "is_causal": True,
        "pass_": "forward_backward",
        "recipe": "recall-smoke",
    } | changes
    return TrainingCase(**{**PATTERNS.get(VARIANTS[fields["variant"]].takes, {}), **fields})
