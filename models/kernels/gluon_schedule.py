"""Which tile a program takes next, and which buffer a step uses and when: plain arithmetic.

The Gluon kernel calls these functions as they stand, and so do the tests and their
`gluon_protocol`, which explores the barriers: integers in, integers out, Python's operators only.
"""

from triton.experimental import gluon


@gluon.jit
def tile_at(index, units, tiles, span):
    """The tile and its unit at place `index` in the order in which tiles are taken.

    units: heads x segments x batch elements, of `tiles` tiles each. `span` consecutive units, whose
    keys fit into L2 together, form a group; within it the last tiles come first, which are the
    longest when causal (the order of FlashAttention-3's scheduler).
    """
    group = index // (span * tiles)
    place = index - group * span * tiles
    width = min(span, units - group * span)
    return tiles - 1 - place // width, group * span + place % width


@gluon.jit
def steps_of(start, kept, BLOCK_M, BLOCK_N, IS_CAUSAL):
    """How many tiles of keys a tile of queries from `start` on reads, in a run of `kept` tokens.

    They are taken from the last, which the diagonal or the run's end may cut, to the first.
    """
    end = kept
    if IS_CAUSAL:
        end = min(kept, start + BLOCK_M)
    return (end + BLOCK_N - 1) // BLOCK_N


@gluon.jit
def slot(count, BUFFERS):
    """The buffer of step number `count`, counted over all tiles of the program."""
    return count % BUFFERS


@gluon.jit
def filled(count, BUFFERS):
    """The parity to wait for until that step's buffer is full."""
    return (count // BUFFERS) & 1


@gluon.jit
def emptied(count, BUFFERS):
    """The parity to wait for until all have read what the buffer held before that step.

    In the first round that is the phase before the first, which counts as complete.
    """
    return ((count // BUFFERS) & 1) ^ 1


@gluon.jit
def place_of(first, rate, n_tokens):
    """Row and residue of token `first` = rate * row + residue; and whether the residue has one row
    more than n_tokens // rate."""
    row = first // rate
    residue = first - row * rate
    return row, residue, residue < n_tokens % rate
