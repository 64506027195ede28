"""cuDNN on strided views without a card: its op's arguments, and what is done with its LSE.

A stand-in takes the op's place under the op's own schema. It computes what cuDNN's sources say, in
the dtype of its inputs, and insists on what they rely on.
"""

import pytest
import torch

from models import UnsupportedBackend, dilated_attention, fused_ops
from models.dilated import resolve_backend
from models.dilated_op import dilated
from models.oracle import reference, reference_gradients
from models.patterns import DilatedBranches
from tests.models.helpers import relative_rms

LISTS = ((8, 20, 40), (1, 2, 3))


class StandIn:
    """In the place of `torch.ops.aten`; lse_dims: of the op's LSE, which differs by version."""

    def __init__(self, lse_dims):
        self.lse_dims = lse_dims

    def __getattr__(self, name):
        schema = getattr(torch.ops.aten, name).default._schema
        compute = {False: self.forward, True: self.backward}[name.endswith("backward")]

        def call(*args, **options):
            given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | options
            assert set(given) <= {a.name for a in schema.arguments}
            needed = {a.name for a in schema.arguments if not a.has_default_value()}
            assert needed <= set(given)
            return compute(**given)

        return call

    def scores(self, query, key, is_causal, scale):
        scores = scale * query @ key.transpose(-1, -2)
        allowed = torch.ones(scores.shape[-2:]).tril().bool()
        return scores.masked_fill(~allowed, -torch.inf) if is_causal else scores

    def forward(
        self, query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal, scale
    ):
        assert (attn_bias, compute_log_sumexp, dropout_p) == (None, True, 0.0)
        scores = self.scores(query, key, is_causal, scale)
        lse = scores.logsumexp(dim=-1, keepdim=True)
        out = torch.empty_like(query).copy_((scores - lse).exp() @ value)
        lse = lse if self.lse_dims == 4 else lse[..., 0]
        return out, lse, None, None, query.shape[2], key.shape[2], "seed", "offset", None

    def backward(
        self, grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset, attn_bias,
        cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, scale,
    ):  # fmt: skip
        assert (philox_seed, philox_offset, attn_bias) == ("seed", "offset", None)
        assert (cum_seq_q, cum_seq_k, dropout_p) == (None, None, 0.0)
        assert (max_q, max_k) == (query.shape[2], key.shape[2])
        # Plans are looked up by the strides of q, k, v.
        assert out.stride() == grad_out.stride() == torch.empty_like(query).stride()
        assert logsumexp.is_contiguous() and logsumexp.dim() == self.lse_dims
        lse = logsumexp.view(*query.shape[:3], 1)
        weights = (self.scores(query, key, is_causal, scale) - lse).exp()
        delta = (grad_out * out).sum(dim=-1, keepdim=True)
        grad_scores = scale * weights * (grad_out @ value.transpose(-1, -2) - delta)
        return (
            grad_scores @ key,
            grad_scores.transpose(-1, -2) @ query,
            weights.transpose(-1, -2) @ grad_out,
        )


def problem(n=46, heads=4, dim=8):
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    # Slices of one projection's output, so that q's strides are not those of a tensor of its own.
    q, k, v = (x.detach().requires_grad_() for x in normal(2, n, 3 * heads, dim).split(heads, 2))
    return q, k, v, normal(2, n, heads, dim), normal(2, heads, n)


def attend(q, k, v, is_causal):
    lists = tuple(map(list, LISTS))
    return dilated(q, k, v, None, None, *lists, "modulo", is_causal, 0.3, "cuda-cudnn")


@pytest.mark.parametrize("through_lse", (False, True))
@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("lse_dims", (3, 4))
def test_merged_by_lse_forward_and_backward(monkeypatch, lse_dims, is_causal, through_lse):
    monkeypatch.setattr(fused_ops, "_aten", StandIn(lse_dims))
    monkeypatch.setattr(fused_ops, "why_not_cudnn", lambda q: None)
    q, k, v, grad_out, grad_lse = problem()
    pattern = DilatedBranches(*LISTS)
    out, lse = attend(q, k, v, is_causal)
    options = {"pattern": pattern, "is_causal": is_causal, "scale": 0.3}
    want, want_lse = reference(q, k, v, **options)
    assert relative_rms(out, want) < 1e-14
    assert relative_rms(lse, want_lse) < 1e-14
    outputs, cotangents = ((out, lse), (grad_out, grad_lse)) if through_lse else (out, grad_out)
    got = torch.autograd.grad(outputs, (q, k, v), cotangents)
    grad_lse = grad_lse if through_lse else None
    want = reference_gradients(q, k, v, grad_out, grad_lse=grad_lse, **options)
    assert relative_rms(got, want) < 1e-13


def test_what_it_cannot_do_is_refused_with_the_reason(monkeypatch):
    q, k, v, grad_out, grad_lse = problem()
    for attempt in (
        lambda: resolve_backend(q, "sdpa-cudnn"),
        lambda: dilated_attention(q, k, v, *LISTS, backend="sdpa-cudnn"),
    ):
        with pytest.raises(UnsupportedBackend, match="^sdpa-cudnn: needs a CUDA device$"):
            attempt()

    monkeypatch.setattr(fused_ops, "_aten", StandIn(4))
    declined = {8: None, 9: "head_dim 9"}
    monkeypatch.setattr(fused_ops, "why_not_cudnn", lambda q: declined[q.shape[3]])
    out, lse = attend(q, k, v, False)
    torch.autograd.grad(out, q, grad_out, retain_graph=True)
    with pytest.raises(UnsupportedBackend, match="gradient of the LSE takes columns: head_dim 9$"):
        torch.autograd.grad(lse, q, grad_lse)

    # The last of 41 tokens is a segment of its own.
    q, k, v = (x[:, :41] for x in (q, k, v))
    with pytest.raises(UnsupportedBackend, match="a segment keeps one key"):
        attend(q, k, v, False)
