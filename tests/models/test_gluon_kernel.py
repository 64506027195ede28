"""The Gluon kernel's own functions on the CPU, against the oracle; its machine code.

Compiled forms are launched by test_gpu_kernels.py, where there is a card.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models import UnsupportedBackend, dilated_attention
from models.dilated import resolve_backend
from models.kernels import dilated_gluon
from models.oracle import reference, reference_gradients
from models.patterns.branches import DilatedBranches, HeadPartition
from tests.models.gluon_stand_in import standing_in
from tests.models.helpers import Problem, attend_branches, relative_rms

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="on a stand-in here; test_gpu_kernels.py has it compiled",
)
LAYOUTS = ("packed", "fused", "heads_first", "tokens_first")


def attend(problem, q, k, v, pattern=None, scale=0.25):
    pattern = pattern or problem.pattern
    return attend_branches(q, k, v, pattern, problem.is_causal, scale, "gluon")


@st.composite
def small_problems(draw):
    kv_heads = draw(st.integers(1, 2))
    branch = st.tuples(st.integers(1, 60), st.integers(1, 5))
    return Problem(
        batch=draw(st.integers(1, 2)),
        n=draw(st.integers(1, 40)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from((16, 32))),
        branches=tuple(draw(st.lists(branch, min_size=1, max_size=3))),
        head_offset=draw(st.sampled_from(("modulo", "block"))),
        is_causal=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


@settings(max_examples=6)
@given(problem=small_problems(), buffers=st.integers(1, 3), programs=st.integers(1, 4))
@example(problem=Problem(2, 50, 4, 2, 16, ((8, 1), (50, 2), (13, 1))), buffers=2, programs=3)
@example(problem=Problem(1, 49, 2, 2, 32, ((7, 3), (200, 2)), "block", True), buffers=1, programs=2)
@example(problem=Problem(1, 60, 1, 1, 16, ((60, 1),), is_causal=True), buffers=3, programs=1)
def test_results_are_the_oracles_and_each_is_written_once(problem, buffers, programs):
    q, k, v, *_ = (x.detach() for x in problem.tensors(torch.float32))
    with standing_in(buffers=buffers, programs=programs) as launcher:
        out, lse = attend(problem, q, k, v)
    options = {"pattern": problem.pattern, "is_causal": problem.is_causal, "scale": 0.25}
    want, want_lse = reference(q, k, v, **options)
    assert relative_rms(out, want) <= 1e-6
    assert torch.equal(lse.isneginf(), want_lse.isneginf())
    held = want_lse.isfinite()
    assert relative_rms(lse[held], want_lse[held]) <= 1e-6
    for x in (out, lse):
        assert (launcher.written[x.data_ptr()] == 1).all()


def test_tiles_as_they_are_on_a_card_in_half_precision():
    problem = Problem(1, 300, 2, 1, 64, ((300, 1), (300, 2)), is_causal=True)
    q, k, v, *_ = (x.detach() for x in problem.tensors(torch.bfloat16))
    with standing_in(block=128):
        out, lse = attend(problem, q, k, v, scale=0.125)
    want, want_lse = reference(q, k, v, pattern=problem.pattern, is_causal=True, scale=0.125)
    assert out.dtype == torch.bfloat16 and relative_rms(out, want) < 2**-8
    assert relative_rms(lse, want_lse) < 1e-6


def test_gradients_are_those_of_the_triton_kernels():
    problem = Problem(1, 24, 2, 1, 16, ((8, 1), (24, 3)), is_causal=True)
    q, k, v, grad_out, grad_lse = problem.tensors(torch.float32)
    with standing_in():
        outputs = attend(problem, q, k, v)
    got = torch.autograd.grad(outputs, (q, k, v), (grad_out, grad_lse), retain_graph=True)
    alone = torch.autograd.grad(outputs[0], (q, k, v), grad_out)
    options = {"pattern": problem.pattern, "is_causal": True, "scale": 0.25}
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms(got, want) < 1e-6
    assert relative_rms(alone, reference_gradients(q, k, v, grad_out, **options)) < 1e-6


def check_that_nothing_leaks(is_causal, changes=None):
    n, pattern, heads = 70, DilatedBranches([25], [3]), 3
    problem = Problem(1, n, heads, heads, 16, is_causal=is_causal)
    q, k, v, *_ = (x.detach() for x in problem.tensors(torch.float32))
    with standing_in(changes=changes):
        clean, clean_lse = attend(problem, q, k, v, pattern)
        for x in (q, k, v):
            x[:, 25:50] = torch.nan
        out, lse = attend(problem, q, k, v, pattern)
    for part in (slice(0, 25), slice(50, n)):
        assert torch.equal(out[:, part], clean[:, part])
        assert torch.equal(lse[:, :, part], clean_lse[:, :, part])
    kept = clean_lse.isfinite()
    assert kept[:, :, 25:50].any() and lse[:, :, 25:50][kept[:, :, 25:50]].isnan().all()


@pytest.mark.parametrize("is_causal", (False, True))
def test_what_others_hold_does_not_leak(is_causal):
    """A NaN reaches nobody but those who attend to its token: tiles reach into other segments."""
    check_that_nothing_leaks(is_causal)
    for changes in (
        {"produce": ("if n + BLOCK_N > kept:", "if False:")},
        {"clear_from": ("rows + i * ATOM < kept", "rows + i * ATOM <= kept")},
        {"consume": ('s = gl.where(seen, s, float("-inf"))', "pass")},
    ):
        with pytest.raises(AssertionError):
            check_that_nothing_leaks(is_causal, changes)


def test_heads_of_one_branch_only():
    problem = Problem(1, 40, 5, 5, 16)
    q, k, v, *_ = (x.detach() for x in problem.tensors(torch.float32))
    pattern = HeadPartition([8, 40], [1, 2])
    with standing_in():
        out, _ = attend(problem, q, k, v, pattern)
    assert relative_rms(out, reference(q, k, v, pattern=pattern, scale=0.25)[0]) < 1e-6


def on_card(monkeypatch, capability=(9, 0), dtype=torch.float16, dim=64, n=256):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return SimpleNamespace(
        device=torch.device("cuda"),
        dtype=dtype,
        shape=(1, n, 2, dim),
        element_size=lambda: dtype.itemsize,
    )


@pytest.mark.parametrize(
    "options, reason",
    (
        ({}, None),
        ({"dtype": torch.bfloat16, "dim": 128}, None),
        ({"capability": (8, 0)}, "is written for compute capability 9.0, not (8, 0)"),
        ({"capability": (10, 0)}, "is written for compute capability 9.0, not (10, 0)"),
        ({"dtype": torch.float32}, "takes float16 and bfloat16, not torch.float32"),
        ({"dim": 96}, "head_dim=96: takes 64 or 128"),
        ({"n": 2**31}, "counts them in 32 bits"),
    ),
    ids=str,
)
def test_what_it_can_and_cannot_do(options, reason, monkeypatch):
    told = dilated_gluon.why_not(on_card(monkeypatch, **options))
    assert told is None if reason is None else reason in told


def test_it_is_refused_here_and_never_chosen_by_itself(monkeypatch):
    q = torch.zeros(1, 4, 1, 64, dtype=torch.float16)
    with pytest.raises(UnsupportedBackend, match="gluon: needs a CUDA device of .* is on cpu"):
        dilated_attention(q, q, q, [4], [1], backend="gluon")
    with pytest.raises(UnsupportedBackend, match="gluon: .* is on meta"):
        resolve_backend(q.to("meta"), "gluon")
    monkeypatch.setattr("models.kernels.HAS_TRITON", False)
    with pytest.raises(UnsupportedBackend, match="gluon: the package triton is not installed"):
        resolve_backend(q, "gluon")
    monkeypatch.undo()
    monkeypatch.setattr(dilated_gluon, "why_not", lambda q: None)
    assert resolve_backend(q, "auto") == "sdpa (cpu-flash)"
    assert resolve_backend(q, "gluon") == "gluon"


COMPILED = """
import json, sys
import torch, triton
from pathlib import Path
from models.kernels import dilated, dilated_gluon, gluon_forms
from models.kernels.aot import Driver
from models.patterns import DilatedBranches
wanted = {"D": 64, "IS_CAUSAL": True, "BASE": False, "SHORT": False}
(form,) = [f for f in gluon_forms.forms([90]) if wanted.items() <= dict(f.constants).items()]
made = gluon_forms.build(form)
cubin = gluon_forms.compiled(form).metadata_group["forward.cubin"]
told = [gluon_forms.fault(form, made), vars(made.loop)]
waits, early, arrivals = False, 0, 0
for line in Path(cubin).with_suffix(".ptx").read_text().splitlines():
    if "mbarrier.try_wait" in line:
        waits = True
    elif "bar.sync" in line or "bar.warp.sync" in line:
        waits = False
    elif "mbarrier.arrive.shared" in line:
        arrivals += 1
        early += waits
hits = []
triton.runtime.driver.set_active(Driver(90))
triton.knobs.compilation.listener = lambda src, cache_hit, **_: hits.append(cache_hit)
walks = dilated_gluon.walks
dilated_gluon.walks = lambda *arguments: walks(*arguments)[:3]  # the carried branches
q, k, v = (torch.empty(1, 4096, 4, 64, dtype=torch.float16) for _ in range(3))
pattern = DilatedBranches([512, 1024, 2048, 4096], [1, 2, 4, 6])
lists = dilated.branch_lists(pattern, 4)
dilated_gluon.forward(q, k, v, *lists, True, 0.125)
print(json.dumps([told, hits, early, arrivals]))
"""


def test_what_is_compiled_ahead_is_what_is_launched_and_overlaps(compiler, tmp_path):
    """In a process of its own, on a driver that stands for Hopper: in this one Triton interprets.

    Of a step of 64 x 128 scores: the softmax stands between the wait for its own product and
    the wait for the one before, so that tensor cores work beside it.
    """
    (fault, loop), hits, early, arrivals = json.loads(compiler.run(COMPILED, tmp_path, tmp_path))
    assert fault is None and hits == [True]
    assert loop["overlapped"] == loop["exponentials"] == 66
    # One thread arrives for its group, and no other is to wait for that phase still: five
    # arrivals of each consumer, one of the producer for a cut tile.
    assert (early, arrivals) == (0, 11)
