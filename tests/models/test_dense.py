"""Dense attention by backend, and the argument checks that all functions share."""

import pytest
import torch

from models import (
    UnsupportedBackend,
    dense,
    dense_attention,
    dilated_attention,
    head_partitioned_attention,
)
from models.dense import BACKENDS, resolve_backend
from models.dilated import BACKENDS as DILATED_BACKENDS
from models.oracle import reference, reference_gradients
from tests.models.helpers import LAYOUTS, Problem, relative_rms

ON_CPU = ("auto", "sdpa-flash", "sdpa-math", "eager")
WITH_LSE = ("auto", "sdpa-flash", "eager")
# FlexAttention runs here, without gradients: tests/models/test_flex.py.
ELSEWHERE = tuple(sorted(set(BACKENDS) - {*ON_CPU, "flex"}))
# Relative rms: about one unit of rounding, times a few for the sums in float32 and float64.
TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 6e-7,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}


# Each dtype with and without causality, and each of kv_heads with either.
OF_DTYPES = [
    (dtype, is_causal, (1, 2, 6)[(2 * place + is_causal) % 3])
    for place, dtype in enumerate(TOLERANCE)
    for is_causal in (False, True)
]


@pytest.mark.parametrize(("dtype", "is_causal", "kv_heads"), OF_DTYPES, ids=str)
@pytest.mark.parametrize("backend", ON_CPU)
def test_every_backend_is_softmax(backend, kv_heads, is_causal, dtype):
    for n, dim in ((1, 8), (70, 16), (33, 5)):
        q, k, v, grad_out, _ = Problem(2, n, 6, kv_heads, dim).tensors(dtype)
        out = dense_attention(q, k, v, is_causal=is_causal, backend=backend)
        want, _ = reference(q, k, v, is_causal=is_causal)
        assert out.dtype == dtype and out.shape == q.shape
        assert relative_rms(out, want) <= TOLERANCE[dtype]
        got = torch.autograd.grad(out, (q, k, v), grad_out)
        want = reference_gradients(q, k, v, grad_out, is_causal=is_causal)
        assert relative_rms(got, want) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize(("dtype", "is_causal", "kv_heads"), OF_DTYPES, ids=str)
@pytest.mark.parametrize("backend", WITH_LSE)
def test_lse_and_its_gradient(backend, kv_heads, is_causal, dtype):
    q, k, v, grad_out, grad_lse = Problem(2, 70, 6, kv_heads, 16).tensors(dtype)
    options = {"is_causal": is_causal}
    out, lse = dense_attention(q, k, v, backend=backend, return_lse=True, **options)
    want, want_lse = reference(q, k, v, **options)
    assert lse.dtype == grad_lse.dtype
    assert relative_rms(out, want) <= TOLERANCE[dtype]
    assert relative_rms(lse, want_lse) <= TOLERANCE[dtype]
    got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms(got, want) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ON_CPU)
def test_any_memory_layout(backend, layout):
    q, k, v, *_ = Problem(2, 20, 4, 4, 8, layout=layout).tensors(torch.float64)
    want, _ = reference(q, k, v)
    assert relative_rms(dense_attention(q, k, v, backend=backend), want) < 1e-14


@pytest.mark.parametrize("scale", (1, 0.05))
@pytest.mark.parametrize("backend", ON_CPU)
def test_scale(backend, scale):
    q, k, v, *_ = Problem(1, 20).tensors(torch.float64)
    want, _ = reference(q * scale, k, v, scale=1)
    assert relative_rms(dense_attention(q, k, v, scale=scale, backend=backend), want) < 1e-14


def test_auto_names_what_runs():
    q = k = torch.zeros(1, 4, 2, 8)
    assert resolve_backend(q, k, "auto") == "sdpa-flash"
    assert resolve_backend(q, k, "eager") == "eager"
    on_meta = q.to("meta")
    assert resolve_backend(on_meta, on_meta, "auto") == "sdpa-math"
    assert resolve_backend(on_meta, on_meta, "auto", return_lse=True) == "eager"


@pytest.mark.parametrize("backend", ELSEWHERE)
def test_backends_of_other_devices_say_so(backend):
    q, k, v, *_ = Problem().tensors(torch.float16)
    with pytest.raises(UnsupportedBackend, match=f"{backend}: needs a CUDA device"):
        dense_attention(q, k, v, backend=backend)


def test_a_backend_without_lse_says_so():
    q, k, v, *_ = Problem().tensors(torch.float32)
    with pytest.raises(UnsupportedBackend, match="sdpa-math: gives no LSE"):
        dense_attention(q, k, v, backend="sdpa-math", return_lse=True)


def test_sdpa_on_a_device_without_fused_ops_says_so():
    q, k, v = (x.to("meta") for x in Problem().tensors(torch.float32)[:3])
    with pytest.raises(UnsupportedBackend, match="no fused attention op with LSE on meta"):
        dilated_attention(q, k, v, [8], [1], backend="sdpa")


def partitioned(q, k, v, **options):
    return head_partitioned_attention(q, k, v, [8, 4], [1, 2], **options)


def dilated(q, k, v, **options):
    return dilated_attention(q, k, v, [8, 4], [1, 2], **options)


Q = torch.zeros(2, 8, 4, 16)
BAD_INPUT = {
    "q not a tensor": ({"q": [[1.0]]}, r"q=list: expected a tensor"),
    "q of three dimensions": ({"q": Q[0]}, r"q=\(8, 4, 16\): expected a tensor \(batch"),
    "integers": ({"q": Q.long()}, r"q.dtype=torch.int64: expected float64"),
    "no tokens": ({"q": Q[:, :0]}, r"q.shape=\(2, 0, 4, 16\): expected no empty dimension"),
    "mixed dtypes": ({"k": Q.double()}, r"k is torch.float64 on cpu: expected torch.float32"),
    "mixed devices": ({"v": Q.to("meta")}, r"v is torch.float32 on meta: expected .* cpu"),
    "v unlike k": ({"v": Q[..., :8]}, r"v.shape=\(2, 8, 4, 8\): expected k's shape"),
    "another batch": ({"k": Q[:1], "v": Q[:1]}, r"k.shape=\(1, 8, 4, 16\): expected batch 2"),
    "another head_dim": ({"k": Q[..., :8], "v": Q[..., :8]}, r"k.shape=.*head_dim 16"),
    "3 key heads for 4": ({"k": Q[:, :, :3], "v": Q[:, :, :3]}, r"k.shape=.*divides q's 4"),
    "another length": ({"k": Q[:, :5], "v": Q[:, :5]}, r"k.shape=.*expected 8 tokens"),
    "scale 0": ({"scale": 0}, r"scale=0: expected a positive number or None"),
    "scale below 0": ({"scale": -0.5}, r"scale=-0.5: expected a positive number"),
    "scale nan": ({"scale": float("nan")}, r"scale=nan: expected a positive number"),
    "scale text": ({"scale": "1"}, r"scale='1': expected a positive number"),
    "backend": ({"backend": "fast"}, r"backend='fast': expected one of auto, "),
}


@pytest.mark.parametrize("attention", (dense_attention, dilated, partitioned))
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_its_value(name, attention):
    changes, message = BAD_INPUT[name]
    with pytest.raises(ValueError, match=message):
        attention(**({"q": Q, "k": Q, "v": Q} | changes))


def test_an_unknown_backend_lists_the_choices():
    with pytest.raises(ValueError) as error:
        dense_attention(Q, Q, Q, backend="fast")
    assert all(name in str(error.value) for name in BACKENDS)
    with pytest.raises(ValueError, match=f"expected one of {', '.join(DILATED_BACKENDS)}$"):
        dilated(Q, Q, Q, backend="fast")


@pytest.mark.parametrize(
    "mask", (torch.zeros(2, 8), torch.zeros(8, dtype=torch.bool), torch.zeros(2, 9).bool())
)
def test_a_bad_key_padding_mask_is_named(mask):
    shape = str(tuple(mask.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"key_padding_mask={mask.dtype} {shape}: expected bool"):
        dilated(Q, Q, Q, key_padding_mask=mask)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(dense.importlib.util, "find_spec", lambda name: None)
    reason = dense._why_not_flash_attn_2(Q.half(), return_lse=False)
    assert reason == "the package flash-attn is not installed (envs/cuda.txt)"
