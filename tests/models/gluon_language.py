"""What the Gluon kernel's functions call, on torch tensors; see `gluon_stand_in`."""

import inspect
import textwrap
from types import FunctionType, SimpleNamespace

import torch
import triton.experimental.gluon.language as gluon_language
import triton.language

from tests.models.gluon_programs import Barrier, here


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
        here.program.wrote(self.place)
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
    here.program.note("issue", places)
    here.pending.append(made)
    return made


def _warpgroup_mma_wait(outstanding, deps):
    here.program.note("drain", outstanding)
    while len(here.pending) > outstanding:
        here.pending.pop(0).finish()
    (made,) = deps
    return made.value


def _copy(descriptor, corner, bar, buffer, pred=True):
    if not pred:
        return
    program, size = here.program, descriptor.block_type.nbytes
    corner = tuple(int(x) for x in corner)
    program.note("copy", bar.place, buffer.place, size)
    buffer.tensor.copy_(descriptor.box(corner))
    program.turn(bar.place, 0, -size)


def _allocate(dtype, shape, layout):
    program = here.program
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
    here.program.written[pointer.memory.data_ptr()][offset[mask]] += 1
    pointer.memory[offset[mask]] = value[mask].to(pointer.memory.dtype)


def _init(bar, count):
    here.program.barriers[bar.place] = Barrier(count)


def _expect(bar, size):
    here.program.note("expect", bar.place, size)
    here.program.turn(bar.place, 1, size)


def _arrive(bar, count):
    assert count == 1
    here.program.note("arrive", bar.place)
    here.program.turn(bar.place, 1, 0)


def _nothing(*arguments, **options):
    return None


def _range(*limits):
    return (torch.tensor(i) for i in range(*map(int, limits)))


_LANGUAGE = SimpleNamespace(
    constexpr=lambda x: x,
    program_id=lambda axis: torch.tensor(here.program.index),
    num_programs=lambda axis: torch.tensor(here.program.programs),
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
    multiple_of=lambda x, count: x,
    exp2=torch.exp2,
    log2=torch.log2,
    load=_load,
    store=_store,
    allocate_shared_memory=_allocate,
    warp_specialize=lambda *arguments: here.program.specialize(*arguments),
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
        wait=lambda bar, parity: here.program.wait(bar.place, parity),
        expect=_expect,
        arrive=_arrive,
        MBarrierLayout=_nothing,
    ),
    "tma": SimpleNamespace(async_copy_global_to_shared=_copy),
    "fence_async_shared": lambda: here.program.note("fence"),
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
