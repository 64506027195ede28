"""What is compiled ahead is what a call launches; a call that goes wrong takes no other with it.

In processes of their own: in this one Triton interprets.
"""

import json

import pytest

from models.kernels import aot, tiles
from models.kernels.calls import Call

HEAD = """
import json, os, signal, sys, time
import triton
from models.kernels import aot, tiles
from models.kernels.calls import Call, problem
from models.kernels.tiles import Tile

BASE = dict(dtype="float16", head_dim=40, tokens=1000, heads=2, kv_heads=1)
BRANCHES = dict(segment_lengths=(256, 1000), dilation_rates=(1, 3))
TILE = Tile(16, 16, 4, 1)
FORWARD = Call("dilated", "forward", **BASE, **BRANCHES, tile=TILE)
# Keys of the key-and-value pass, with a step of few instructions: seconds of compiling count.
HOP = Call("hop", "backward_kv", **BASE, tile=TILE)
"""
AHEAD = """
runs = []
for _ in range(2):
    found = aot.compile_ahead(
        [FORWARD, HOP], capability=90, processes=2, deadline=time.monotonic() + 300
    )
    runs.append([
        [c.reason, c.fault(90), [[k.name, k.built.registers > 0, k.cached] for k in c.kernels]]
        for c in found
    ])
touched = "torch.cuda" in sys.modules and sys.modules["torch"].cuda.is_initialized()
print(json.dumps([*runs, touched]))
"""
# Triton's own driver for CUDA, with what it asks of torch and of the card answered here; the
# whole path of a launch is Triton's.
LAUNCHED = """
from types import SimpleNamespace
from triton.backends.nvidia.driver import CudaDriver
launched, misses = [], []
driver = object.__new__(CudaDriver)
driver.get_current_device = lambda: 0
driver.get_device_capability = lambda device: (9, 0)
driver.get_current_stream = lambda device: 0
driver.launcher_cls = lambda src, metadata: lambda *a: launched.append(src.fn.__name__)
driver.utils = SimpleNamespace(
    get_device_properties=lambda device: {"max_shared_mem": 232448},
    load_binary=lambda *binary: (1, 1, 32, 0, 1024),
)
triton.runtime.driver.set_active(driver)
def listen(*, src, cache_hit, **_):
    if not cache_hit:
        misses.append(src.fn.__name__)
triton.knobs.compilation.listener = listen
PASSED_OVER = ("forward", "backward_q", "kernel")  # of the hop
with tiles.assumed(90):
    for call, tile in ((FORWARD, TILE), (HOP, TILE), (HOP, Tile(32, 16, 4, 1))):
        triton.knobs.runtime.jit_cache_hook = (
            lambda *, fn, **_: fn.name in PASSED_OVER and call is HOP
        )
        with tiles.forced(call.table, call.kernel, tile):
            # Other tensors, at other addresses.
            held = bytearray(1000)
            problem(call, "cpu")()
        if tile is TILE:
            missed = list(misses)
print(json.dumps([launched, missed, misses]))
"""


def test_what_is_compiled_ahead_is_what_the_card_launches(compiler, tmp_path):
    first, again, touched = json.loads(compiler.run(HEAD + AHEAD, tmp_path, tmp_path))
    # A launch for the carried branches and one for the base.
    kernels = [["forward", "forward"], ["backward_kv"]]
    assert first == [[None, None, [[name, True, False] for name in names]] for names in kernels]
    # Once more: all of it is there, and known without assembling it again.
    assert again == [[None, None, [[name, True, True] for name in names]] for names in kernels]
    assert not touched
    logs = list(tmp_path.rglob("*.ptxas"))
    assert len(logs) == 3 and all("Used " in log.read_text() for log in logs)
    launched, misses, of_another_tile = json.loads(
        compiler.run(HEAD + LAUNCHED, tmp_path, tmp_path)
    )
    assert launched == ["forward", "forward", "backward_kv", "backward_kv"] and misses == []
    # The proof is one only if another tile would have been a miss.
    assert of_another_tile == ["backward_kv"]


FAULTY = """
from dataclasses import replace
def compile_here(call, capability):
    if call.head_dim == 1:
        raise RuntimeError("no such\\n layout")
    if call.head_dim == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if call.head_dim == 3:
        time.sleep(600)
    return ()
aot.compile_here = compile_here
calls = [replace(FORWARD, head_dim=dim) for dim in (3, 1, 2, 40)]
start = time.monotonic()
options = dict(capability=90, processes=2)
found = dict(aot.compiling(calls, deadline=start + 300, limit=3, **options))
first = [found[number].reason for number in range(4)]
start = time.monotonic()
late = aot.compile_ahead([calls[0], calls[0], calls[3]], deadline=start + 2, **options)
took = time.monotonic() - start
print(json.dumps([first, [c.reason for c in late], took < 30, found[1].fault(90)]))
"""


def test_a_call_that_fails_crashes_or_hangs_is_named_and_takes_no_other_with_it(compiler, tmp_path):
    first, late, in_time, fault = json.loads(compiler.run(HEAD + FAULTY, tmp_path, tmp_path))
    assert first == [
        "not compiled within 3 s",
        "RuntimeError: no such layout",
        "the process that compiled it ended with signal SIGSEGV",
        None,
    ]
    assert fault == first[1]
    cut = "the time was up while it compiled"
    assert late == [cut, cut, "the time was up before it"] and in_time


def test_bad_requests_are_told_before_any_work(monkeypatch):
    options = {"processes": 1, "deadline": 0.0}
    monkeypatch.setattr(tiles, "INTERPRETED", True)
    with pytest.raises(ValueError, match="^TRITON_INTERPRET: kernels are interpreted"):
        aot.compile_ahead([], capability=90, **options)
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    for capability in (75, 30):
        with pytest.raises(ValueError, match=f"^capability={capability}: no tiles are for it"):
            aot.compile_ahead([], capability=capability, **options)


BASE = {"dtype": "float16", "head_dim": 64, "tokens": 64, "heads": 2, "kv_heads": 2}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"table": "ring"}, "table='ring': expected one of dilated, block_sparse, hop"),
        ({"kernel": "both"}, "kernel='both': expected one of forward, backward_q"),
        ({"dtype": "float64"}, "dtype='float64': expected one of float16, bfloat16, float32"),
        ({"segment_lengths": (2,)}, "segment_lengths=.*: goes with dilated attention"),
        (
            {"table": "gluon", "segment_lengths": (2,), "tf32": True},
            "table='gluon': expected no tile",
        ),
        ({"table": "block_sparse"}, "block_size=None: goes with table 'block_sparse'"),
        ({"kernel": "forward_pair"}, "table='hop': expected 'block_sparse' for 'forward_pair'"),
        ({"kernel": "backward", "tile": 1}, "tile: expected kernel to name one"),
    ],
)
def test_a_call_that_makes_no_sense_is_an_error(changes, told):
    with pytest.raises(ValueError, match=told):
        Call(**{"table": "hop", "kernel": "forward", **BASE, **changes})


@pytest.mark.parametrize(
    "call",
    [
        {"table": "hop"},
        {"table": "dilated", "segment_lengths": (16, 64), "dilation_rates": (1, 3)},
        {"table": "block_sparse", "builder": "local_window", "sparsity": 0.5, "block_size": 16},
    ],
    ids=lambda call: call["table"],
)
def test_a_problem_computes_what_its_call_says(call):
    """Here in the interpreter: out, LSE, dQ, dK, dV by the functional API's other backend."""
    import torch

    from models import block_sparse_attention, dilated_attention, patterns
    from models.dense import dense_attention
    from models.kernels.calls import problem

    call = Call(kernel="forward", **{**BASE, "dtype": "float32", "head_dim": 16, **call})
    generator = torch.Generator().manual_seed(0)
    shape = (1, 64, 2, 16)
    q, k, v, grad = (torch.randn(shape, generator=generator) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    options = {"is_causal": True, "return_lse": True}
    if call.table == "hop":
        out, lse = dense_attention(*inputs, **options)
    elif call.table == "dilated":
        out, lse = dilated_attention(*inputs, [16, 64], [1, 3], backend="gather", **options)
    else:
        mask = patterns.local_window(64, sparsity=0.5, block_size=16, is_causal=True)
        out, lse = block_sparse_attention(*inputs, mask, backend="sdpa", **options)
    got = problem(call, "cpu")()
    grads = torch.autograd.grad(out, inputs, grad)
    backward = problem(Call(**{**vars(call), "kernel": "backward"}), "cpu")()
    if call.table == "block_sparse":
        pair = problem(Call(**{**vars(call), "kernel": "forward_pair"}), "cpu")()
        torch.testing.assert_close(pair, got, atol=2e-5, rtol=1e-4)
    got = [x.transpose(1, 2) if call.table == "hop" and x.dim() == 4 else x for x in got]
    if call.table == "hop":
        backward = [x.transpose(1, 2) for x in backward]
    for ours, theirs in zip((*got, *backward), (out, lse, *grads), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
