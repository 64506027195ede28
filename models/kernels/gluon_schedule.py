"""Which tile a program walks to next, and where and when a step's buffer is: plain arithmetic.

The Gluon kernel calls these functions as they stand, and so do `gluon_protocol`, which explores
the barriers, and the tests: integers in, integers out, no operation but Python's own.
"""

from triton.experimental import gluon


@gluon.jit
def tile_at(index, units, tiles, span):
    """The tile of place `index` in the order in which tiles are taken, and its unit.

    units: heads x segments x batch elements, of `tiles` tiles each. `span` units after one
    another, whose keys fit into L2 together, are taken as a group; within it the last tiles
    first, which are the longest when causal (the order of FlashAttention-3's scheduler).
    """
    group = index // (span * tiles)
    place = index - group * span * tiles
    width = min(span, units - group * span)
    return tiles - 1 - place // width, group * span + place % width


@gluon.jit
def steps_of(start, kept, BLOCK_M, BLOCK_N, IS_CAUSAL):
    """Tiles of keys that a tile of queries from `start` on goes through, of a run of `kept`.

    They are taken from the last, which the diagonal or the run's end may cut, to the first.
    """
    end = kept
    if IS_CAUSAL:
        end = min(kept, start + BLOCK_M)
    return (end + BLOCK_N - 1) // BLOCK_N


@gluon.jit
def slot(count, BUFFERS):
    """The buffer of the step that `count` steps came before, over all tiles of the program."""
    return count % BUFFERS


@gluon.jit
def filled(count, BUFFERS):
    """The parity to wait for until that step's buffer is full."""
    return (count // BUFFERS) & 1


@gluon.jit
def emptied(count, BUFFERS):
    """The parity to wait for until all have read what the buffer held before that step.

    The first round waits for the phase before the first, which counts as complete.
    """
    return ((count // BUFFERS) & 1) ^ 1


@gluon.jit
def place_of(first, rate, n_tokens):
    """Token `first` as row and residue, first = rate * row + residue; and whether its residue
    has one row more than n_tokens // rate."""
    row = first // rate
    residue = first - row * rate
    return row, residue, residue < n_tokens % rate
