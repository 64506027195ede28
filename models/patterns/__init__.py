"""Who attends to whom: dilated branches and block masks. Names load on first use.

Code under `models` imports from the submodules, so that a variant's numbers hang on
the pattern that it uses and on no other.
"""

from importlib import import_module

_HOME = {
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
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'models.patterns' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
