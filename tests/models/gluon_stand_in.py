"""Runs the Gluon kernel's own functions on the CPU, since Gluon has no interpreter.

The functions are taken as they stand, with Gluon's names bound to what is here: tensors are
torch's, layouts are nothing, shared memory begins as NaN. A `Launcher` runs a grid, every part of
a program (two consumers, the producer) in a thread of its own, held by barriers as on a card.
Where it records, parts run one after another instead, with barriers that hold nobody, and what
each does to barriers and buffers is kept: `gluon_protocol` explores that. What none of it can
show is what the compiler and the memory model of the card make of the same.
"""

import contextlib

import pytest
import torch

from models.kernels import dilated_gluon, gluon_forward
from tests.models.gluon_language import Descriptor, Pointer, plain
from tests.models.gluon_programs import Program, here

_KERNEL = gluon_forward.forward  # which tests put a launcher in the place of


def _arguments(arguments):
    """As a kernel has them: pointers for tensors, descriptors over memory."""
    for x in arguments:
        if isinstance(x, torch.Tensor):
            yield Pointer(x.view(-1))
        else:
            yield Descriptor(x) if hasattr(x, "block_shape") else x


@contextlib.contextmanager
def standing_in(*, block=16, buffers=2, programs=3, **options):
    """Within, `models.kernels.dilated_gluon` runs here: on tiles of `block` tokens, on a
    card of so many multiprocessors; yields the `Launcher`, which takes the options."""
    launcher = Launcher(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gluon_forward, "forward", launcher)
        patch.setattr(dilated_gluon, "BLOCK_M", block)
        patch.setattr(dilated_gluon, "BLOCK_N", block)
        patch.setattr(dilated_gluon, "BUFFERS", dict.fromkeys((16, 32, 64, 128), buffers))
        patch.setattr(dilated_gluon, "MULTIPROCESSORS", programs)
        yield launcher


class Launcher:
    """Stands for `gluon_forward.forward`: `launcher[grid](...)` runs the grid here.

    written: how often each element of a tensor has been stored, by its address; recorded: of
    each program where `recording`, its barriers' counts and events.
    """

    def __init__(self, recording=False, changes=None):
        self.kernel = plain(_KERNEL, changes)
        self.recording, self.recorded = recording, []
        self.written, self.kept = {}, []  # so that no other tensor comes to have an address

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.run(grid[0], arguments, options)

    def run(self, programs, arguments, options):
        assert options.pop("num_warps") == 4
        options["INDEX"] = torch.int64
        for x in arguments:
            if isinstance(x, torch.Tensor):
                self.kept.append(x)
                self.written.setdefault(x.data_ptr(), torch.zeros(x.numel(), dtype=torch.int32))
        arguments = tuple(_arguments(arguments))
        for index in range(programs):
            program = Program(index, programs, self.recording, self.written)
            here.program, here.part = program, None
            self.kernel(*arguments, **options)
            counts = {place: barrier.count for place, barrier in program.barriers.items()}
            self.recorded.append((counts, program.events))
            if not self.recording:
                for barrier in program.barriers.values():
                    assert barrier.left == barrier.count and barrier.bytes == 0
