"""Runs the Gluon kernel's own functions on the CPU, since Gluon has no interpreter.

The functions are taken as they stand, with Gluon's names bound to what is here: tensors are
torch's, layouts are nothing, shared memory begins as NaN. A `Launcher` runs a grid, every part of
a program (two consumers, the producer) in a thread of its own, held by barriers as on a card.
Where it records, parts run one after another instead, with barriers that hold nobody, and what
each does to barriers and buffers is kept: `gluon_protocol` explores that. What none of it can
show is what the compiler and the memory model of the card make of the same.
"""

import contextlib
import inspect
import itertools
import textwrap
import threading
from types import FunctionType, SimpleNamespace

import pytest
import torch
import triton.experimental.gluon.language as gluon_language
import triton.language

from models.kernels import dilated_gluon, gluon_forward

PARTS = ("first consumer", "second consumer", "producer")
_KERNEL = gluon_forward.forward  # which tests put a launcher in the place of
LIMIT = 30.0  # seconds that a barrier may hold a part for


class Pointer:
    """Into memory that a kernel reads and writes; the tensor is flat."""

    def __init__(self, memory: torch.Tensor, offset=0):
        self.memory, self.offset = memory, offset
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    def __add__(self, distance):
        return Pointer(self.memory, self.offset + distance)


class Shared:
    """Shared memory; `place` names the buffer: (allocation, index)."""

    def __init__(self, tensor, place):
        self.tensor, self.place = tensor, place

    def index(self, i):
        return Shared(self.tensor[int(i)], (self.place[0], int(i)))

    def reshape(self, shape):
        return Shared(self.tensor.view(shape), self.place)

    def permute(self, order):
        return Shared(self.tensor.permute(order), self.place)

    def slice(self, start, length):
        return Shared(self.tensor[start : start + length], self.place)

    def load(self, layout):
        return self.tensor.clone()

    def store(self, value):
        _here().program.wrote(self.place)
        self.tensor.copy_(value)


class Descriptor:
    """A `TensorDescriptor` as the kernel sees it, over memory of which it may read its tensor."""

    layout = None

    def __init__(self, descriptor):
        x = descriptor.base
        self.shape, self.strides, self.block = (
            descriptor.shape,
            descriptor.strides,
            descriptor.block_shape,
        )
        self.start = x.storage_offset()
        self.memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        mine = torch.zeros(self.memory.shape, dtype=torch.bool)
        mine.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
        self.mine = mine
        size = x.element_size()
        for axis in range(5):
            size *= self.block[axis]
        self.block_type = SimpleNamespace(nbytes=size)

    def box(self, corner):
        """The box at `corner`: 0 where it is out of bounds."""
        offset, inside = torch.tensor(self.start), torch.tensor(True)
        for axis, (first, count) in enumerate(zip(corner, self.block, strict=True)):
            at = int(first) + torch.arange(count)
            shape = [-1 if i == axis else 1 for i in range(5)]
            offset = offset + (at * self.strides[axis]).view(shape)
            inside = inside & ((at >= 0) & (at < self.shape[axis])).view(shape)
        offset = torch.where(inside, offset, self.start)
        assert self.mine[offset].all(), "read beyond the tensor"
        return torch.where(inside, self.memory[offset], 0)


class Barrier:
    """Of `count` arrivals a phase; `bytes` are expected and have not come."""

    def __init__(self, count):
        self.count, self.left, self.bytes, self.phase = count, count, 0, 0

    def turn(self, arrivals, change):
        self.left -= arrivals
        self.bytes += change
        assert self.left >= 0
        if self.left == 0 and self.bytes == 0:
            self.left, self.phase = self.count, self.phase + 1


class Program:
    """One program of a grid: its barriers, and what its parts do to them."""

    def __init__(self, index, programs, recording):
        self.index, self.programs, self.recording = index, programs, recording
        self.names = itertools.count()
        self.barriers, self.turned = {}, threading.Condition()
        self.error = None
        self.events = {part: [] for part in PARTS}
        self.at_rest = True

    def note(self, *event):
        if self.recording and _here().part:
            self.events[_here().part].append(event)

    def wrote(self, place):
        self.note("write", place)

    def turn(self, place, arrivals, change):
        if self.recording:
            return
        with self.turned:
            self.barriers[place].turn(arrivals, change)
            self.turned.notify_all()

    def wait(self, place, parity):
        self.note("wait", place, int(parity))
        if self.recording:
            return
        barrier = self.barriers[place]

        def is_through():
            return self.error is not None or barrier.phase % 2 != int(parity)

        with self.turned:
            assert self.turned.wait_for(is_through, LIMIT), "deadlock"
        if self.error is not None:
            raise threading.BrokenBarrierError

    def specialize(self, functions_and_args, warps, registers):
        assert (warps, registers) == ([4, 1], [216, 72])

        def run(part, function, arguments):
            _state.program, _state.part, _state.pending = self, part, []
            try:
                function(*arguments)
                assert not _state.pending, "products that nobody waited for"
            except BaseException as error:
                with self.turned:
                    self.error = self.error or error
                    self.turned.notify_all()
            finally:
                _state.part = None

        threads = [
            threading.Thread(target=run, args=(part, *job), daemon=True)
            for part, job in zip(PARTS, functions_and_args, strict=True)
        ]
        for thread in threads:
            thread.start()
            if self.recording:
                thread.join()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error


_state = threading.local()


def _here():
    return _state


class _Mma:
    """The product a @ b, added to acc: not there until it is waited for."""

    def __init__(self, a, b, acc):
        self.a, self.b, self.acc, self.value = a, b, acc, None

    def finish(self):
        a, b = (x.tensor if isinstance(x, Shared) else x for x in (self.a, self.b))
        self.value = a.float() @ b.float()
        if self.acc is not None:
            self.value += self.acc


def _warpgroup_mma(a, b, acc, *, use_acc=True, is_async):
    assert is_async and not isinstance(acc, _Mma)
    made = _Mma(a, b, acc if use_acc else None)
    places = tuple(x.place for x in (a, b) if isinstance(x, Shared))
    _here().program.note("issue", places)
    _here().pending.append(made)
    return made


def _warpgroup_mma_wait(outstanding, deps):
    state = _here()
    state.program.note("drain", outstanding)
    while len(state.pending) > outstanding:
        state.pending.pop(0).finish()
    (made,) = deps
    return made.value


def _copy(descriptor, corner, bar, buffer, pred=True):
    if not pred:
        return
    program, size = _here().program, descriptor.block_type.nbytes
    corner = tuple(int(x) for x in corner)
    program.note("copy", bar.place, buffer.place, size)
    buffer.tensor.copy_(descriptor.box(corner))
    program.turn(bar.place, 0, -size)


def _allocate(dtype, shape, layout):
    program = _here().program
    tensor = torch.zeros(shape, dtype=dtype)
    if dtype.is_floating_point:
        tensor.fill_(torch.nan)
    return Shared(tensor, (next(program.names), 0))


def _load(pointer, mask=None, other=None):
    offset = torch.as_tensor(pointer.offset)
    if mask is None:
        return pointer.memory[offset]
    offset, mask = torch.broadcast_tensors(offset, mask)
    return torch.where(mask, pointer.memory[torch.where(mask, offset, 0)], other)


def _store(pointer, value, mask):
    offset, mask, value = torch.broadcast_tensors(pointer.offset, mask, value)
    assert torch.unique(offset[mask]).numel() == int(mask.sum())
    written = _here().program.written
    if written is not None:
        written[pointer.memory.data_ptr()][offset[mask]] += 1
    pointer.memory[offset[mask]] = value[mask].to(pointer.memory.dtype)


def _init(bar, count):
    _here().program.barriers[bar.place] = Barrier(count)


def _expect(bar, size):
    _here().program.note("expect", bar.place, size)
    _here().program.turn(bar.place, 1, size)


def _arrive(bar, count):
    assert count == 1
    _here().program.note("arrive", bar.place)
    _here().program.turn(bar.place, 1, 0)


def _nothing(*arguments, **options):
    return None


def _range(*limits):
    return (torch.tensor(i) for i in range(*map(int, limits)))


_LANGUAGE = SimpleNamespace(
    constexpr=lambda x: x,
    program_id=lambda axis: torch.tensor(_here().program.index),
    num_programs=lambda axis: torch.tensor(_here().program.programs),
    static_range=range,
    range=_range,
    arange=lambda start, end, layout=None: torch.arange(start, end),
    zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
    full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
    zeros_like=torch.zeros_like,
    expand_dims=lambda x, axis: x.unsqueeze(axis),
    convert_layout=lambda x, layout: x,
    max=lambda x, axis: x.amax(axis),
    sum=lambda x, axis: x.sum(axis),
    maximum=lambda a, b: torch.maximum(torch.as_tensor(a), torch.as_tensor(b)),
    minimum=lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
    where=torch.where,
    exp2=torch.exp2,
    log2=torch.log2,
    load=_load,
    store=_store,
    allocate_shared_memory=_allocate,
    warp_specialize=lambda *arguments: _here().program.specialize(*arguments),
    float32=torch.float32,
    int32=torch.int32,
    int64=torch.int64,
    NVMMADistributedLayout=_nothing,
    BlockedLayout=_nothing,
    SwizzledSharedLayout=_nothing,
    SliceLayout=_nothing,
    DotOperandLayout=_nothing,
)
_NAMES = {
    "mbarrier": SimpleNamespace(
        init=_init,
        wait=lambda bar, parity: _here().program.wait(bar.place, parity),
        expect=_expect,
        arrive=_arrive,
        MBarrierLayout=_nothing,
    ),
    "tma": SimpleNamespace(async_copy_global_to_shared=_copy),
    "fence_async_shared": lambda: _here().program.note("fence"),
    "warpgroup_mma": _warpgroup_mma,
    "warpgroup_mma_wait": _warpgroup_mma_wait,
    "range": _range,
}


def plain(function, changes=None, made=None):
    """A kernel's function as Python's own. changes: its name or a callee's -> (old, new) source."""
    made = {} if made is None else made
    function = getattr(function, "fn", function)
    if function not in made:
        names = {**_NAMES, "__builtins__": __builtins__}
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if value in (gluon_language, triton.language):
                names[name] = _LANGUAGE
            elif isinstance(value, triton.language.constexpr):
                names[name] = value.value
            elif name not in names and value is not None:
                names[name] = plain(value, changes, made)
        made[function] = FunctionType(function.__code__, names, function.__name__)
        if changes and function.__name__ in changes:
            old, new = changes[function.__name__]
            source = textwrap.dedent(inspect.getsource(function))
            source = source[source.index("def ") :]
            assert source.count(old) == 1, (old, source.count(old))
            names["gl"] = _LANGUAGE
            exec(source.replace(old, new), names)
            made[function] = names[function.__name__]
    return made[function]


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
        self.recording, self.recorded, self.written = recording, [], {}

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.run(grid[0], arguments, options)

    def run(self, programs, arguments, options):
        assert options.pop("num_warps") == 4
        options["INDEX"] = torch.int64
        for x in arguments:
            if isinstance(x, torch.Tensor):
                self.written.setdefault(x.data_ptr(), torch.zeros(x.numel(), dtype=torch.int32))
        arguments = tuple(_arguments(arguments))
        for index in range(programs):
            program = Program(index, programs, self.recording)
            program.written = self.written
            _state.program, _state.part = program, None
            self.kernel(*arguments, **options)
            counts = {place: barrier.count for place, barrier in program.barriers.items()}
            self.recorded.append((counts, program.events))
            if not self.recording:
                for barrier in program.barriers.values():
                    assert barrier.left == barrier.count and barrier.bytes == 0
