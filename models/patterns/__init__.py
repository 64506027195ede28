"""Who attends to whom: dilated branches and block masks. Names load on first use.

Code under `models` imports from the submodules: what a variant depends on is found by following
imports, and it is to depend on the pattern that it uses and on no other.
"""

from models.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "BlockMask": "models.patterns.block_mask",
        "DilatedBranches": "models.patterns.branches",
        "HeadGroup": "models.patterns.branches",
        "HeadPartition": "models.patterns.branches",
        "dilated": "models.patterns.block_builders",
        "global_local": "models.patterns.block_builders",
        "local_window": "models.patterns.block_builders",
        "random": "models.patterns.block_builders",
        "strided": "models.patterns.block_builders",
        "top_k": "models.patterns.block_builders",
    },
)
