"""Every interleaving of the Gluon kernel's parts is right, and what is made wrong is found."""

import pytest
import torch

from models.patterns import DilatedBranches
from models.patterns.branches import HeadPartition
from tests.models.gluon_programs import PARTS
from tests.models.gluon_protocol import Fault, explore
from tests.models.gluon_stand_in import standing_in
from tests.models.helpers import attend_branches


def recorded(n, pattern, is_causal, *, heads=1, **options):
    """Of each program of each launch: barriers' counts, and events of its parts."""
    with standing_in(recording=True, **options) as launcher:
        q, k, v = (torch.zeros(1, n, heads, 16) for _ in range(3))
        attend_branches(q, k, v, pattern, is_causal, 0.25, "gluon")
    return launcher.recorded


# Of tiles of 16 tokens: 1, 2, 3 steps where causal; three of 3, the last cut by the run's end;
# segments of 2 steps and of none, as a head of offset 2 keeps nothing of the last token.
PATTERNS = {
    "one segment": (37, DilatedBranches([37], [1]), 1),
    "one step": (16, DilatedBranches([16], [1]), 1),
    "segments of no tokens": (41, DilatedBranches([40], [3]), 3),
    "heads of no branch": (20, HeadPartition([20, 10], [1, 2]), 2),
}


@pytest.mark.parametrize("programs", (1, 2))
@pytest.mark.parametrize("buffers", (1, 2, 3))
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("name", PATTERNS)
def test_no_interleaving_is_wrong(name, is_causal, buffers, programs):
    n, pattern, heads = PATTERNS[name]
    options = {"heads": heads, "buffers": buffers, "programs": programs}
    found = recorded(n, pattern, is_causal, **options)
    states = [explore(*program) for program in found]
    steps = sum(event[0] == "copy" for _, events in found for event in events[PARTS[2]])
    assert steps > 0 and sum(states) > 8 * steps


def test_a_program_without_tiles_ends():
    """More programs than tiles that hold a token: some do nothing, and end at rest."""
    found = recorded(41, DilatedBranches([40], [3]), False, heads=3, programs=99)
    assert sum(explore(*program) == 1 for program in found) >= 3


def swapped(first, second):
    """Two lines of the consumer's loop, and the same the other way round."""
    indent = "\n" + 20 * " "
    return first + indent + second, second + indent + first


MUTANTS = {
    "waits for the wrong parity of a full buffer": {"filled": ("& 1", "& 1 ^ 1")},
    "waits for the wrong parity of an empty buffer": {"emptied": ("& 1) ^ 1", "& 1)")},
    "does not say that it has read the queries": {
        "consume": ("mbarrier.arrive(q_empty, count=1)", "pass")
    },
    "does not say that it has read the values": {
        "consume": ("mbarrier.arrive(v_empty.index(before), count=1)", "pass")
    },
    "takes one consumer for both, of keys": {
        "forward": ("k_empty.index(i), count=2", "k_empty.index(i), count=1")
    },
    "takes one consumer for both, of values": {
        "forward": ("v_empty.index(i), count=2", "v_empty.index(i), count=1")
    },
    "takes one consumer for both, of queries": {
        "forward": ("q_empty, count=2", "q_empty, count=1")
    },
    "counts steps anew in each tile": {"consume": ("done += steps", "done = steps")},
    "counts tiles anew": {"produce": ("tiles += 1", "tiles = 0")},
    "does not wait for keys": {
        "consume": ("mbarrier.wait(k_full.index(b), filled(count, BUFFERS))", "pass")
    },
    "does not wait for values": {
        "consume": ("mbarrier.wait(v_full.index(before), filled(count - 1, BUFFERS))", "pass")
    },
    "reads the wrong buffer": {
        "consume": ("before = slot(count - 1, BUFFERS)", "before = slot(count, BUFFERS)")
    },
    "tells of keys while it reads them": {
        "consume": swapped(
            "s = warpgroup_mma_wait(1, [s])  # [ROWS, BLOCK_N]",
            "mbarrier.arrive(k_empty.index(b), count=1)",
        )
    },
    "tells of values while it reads them": {
        "consume": swapped(
            "acc = warpgroup_mma_wait(0, [acc])  # [ROWS, D]",
            "mbarrier.arrive(v_empty.index(before), count=1)",
        )
    },
    "tells of a cut tile before it has cleared it": {
        "produce": (
            "mbarrier.wait(cut, filled(cuts, 1))",
            "mbarrier.wait(cut, filled(cuts, 1)); mbarrier.arrive(v_full.index(b), count=1)",
        )
    },
    "clears a tile that has not come": {"produce": ("mbarrier.wait(cut, filled(cuts, 1))", "pass")},
    "expects half the queries": {"produce": ("2 * q_long.block_type", "q_long.block_type")},
    "does not wait for the queries to be read": {
        "produce": ("mbarrier.wait(q_empty, emptied(tiles, 1))", "pass")
    },
    "does not wait for keys to be read": {
        "produce": ("mbarrier.wait(k_empty.index(b), emptied(count, BUFFERS))", "pass")
    },
    "fetches values a step early": {"produce": ("count = done + i - 1", "count = done + i")},
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_wrong_is_found(name):
    with pytest.raises(Fault):
        for is_causal in (False, True):
            options = {"buffers": 2, "programs": 1, "changes": MUTANTS[name]}
            for program in recorded(53, DilatedBranches([53], [1]), is_causal, **options):
                explore(*program)
