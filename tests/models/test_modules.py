"""`MultiheadDilatedAttention` against its parts, `nn.MultiheadAttention` and PyTorch's layers."""

import pytest
import torch
from torch import nn

from models import MultiheadDilatedAttention, dilated_attention
from tests.models.helpers import DILATED_BACKENDS, relative_rms

BRANCHES = ([8, 16], [1, 2])
PADDED = torch.arange(20).expand(2, 20) >= torch.tensor([[20], [13]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(20, dtype=torch.float64)


def module(embed_dim=16, num_heads=4, branches=BRANCHES, seed=0, **options):
    torch.manual_seed(seed)
    attention = MultiheadDilatedAttention(
        embed_dim, num_heads, *branches, **{"dtype": torch.float64} | options
    )
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return attention


def tokens(seed=1):
    return torch.randn(
        2, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("num_kv_heads", (None, 1, 2))
@pytest.mark.parametrize("backend", DILATED_BACKENDS)
@pytest.mark.parametrize("options", ({}, {"bias": False}, {"sub_layer_norm": False}))
def test_it_is_its_parts(options, backend, num_kv_heads):
    attention = module(num_kv_heads=num_kv_heads, backend=backend, head_offset="block", **options)
    x = tokens()
    kv_dim = 4 * (num_kv_heads or 4)
    assert attention.in_proj.weight.shape == (16 + 2 * kv_dim, 16)
    q, k, v = (x @ w.T for w in attention.in_proj.weight.split((16, kv_dim, kv_dim)))
    if attention.in_proj_bias is not None:
        q, k, v = (
            y + b
            for y, b in zip(
                (q, k, v), attention.in_proj_bias.split((16, kv_dim, kv_dim)), strict=True
            )
        )
    q, k, v = (y.unflatten(-1, (-1, 4)) for y in (q, k, v))
    out = dilated_attention(
        q, k, v, *BRANCHES, is_causal=True, head_offset="block", key_padding_mask=PADDED
    )
    out = attention.out_proj(attention.norm(out.flatten(2)))
    got, weights = attention(x, x, x, key_padding_mask=PADDED, is_causal=True)
    assert weights is None
    close(got, out)


@pytest.mark.parametrize("key_padding_mask", (None, PADDED))
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("is_causal", (False, True))
def test_one_dense_branch_is_pytorchs_multihead_attention(is_causal, bias, key_padding_mask):
    ours = module(branches=([20], [1]), sub_layer_norm=False, bias=bias)
    theirs = nn.MultiheadAttention(16, 4, bias=bias, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.in_proj.weight)
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(ours.in_proj.bias)
            theirs.out_proj.bias.copy_(ours.out_proj.bias)
    x = tokens()
    # With -inf in both masks PyTorch warns of nothing and gives no NaN: a query sees itself.
    options = {"key_padding_mask": key_padding_mask}
    causal_mask = CAUSAL.isneginf() if is_causal else None
    want, _ = theirs(x, x, x, need_weights=False, attn_mask=causal_mask, **options)
    got, _ = ours(x, x, x, is_causal=is_causal, **options)
    close(got, want)


def test_three_inputs_are_projected_apart():
    attention = module()
    x, y, z = (tokens(seed) for seed in range(3))
    q, k, v = attention.project(x, y, z)
    for got, source, place in ((q, x, 0), (k, y, 1), (v, z, 2)):
        close(got, attention.project(source)[place])
    close(attention(x, x.clone(), x.clone())[0], attention(x, x, x)[0])


@pytest.mark.parametrize("num_kv_heads", (None, 2))
@pytest.mark.parametrize("masks", ({}, {"src_key_padding_mask": PADDED}, {"src_mask": CAUSAL}))
def test_an_encoder_layer_runs_it_in_training_and_in_inference(masks, num_kv_heads):
    """In inference PyTorch would run dense attention on our weights if it took its fused path."""
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    layer.self_attn = module(num_kv_heads=num_kv_heads)
    x, causal = tokens(), "src_mask" in masks
    attended, _ = layer.self_attn(
        x, x, x, key_padding_mask=masks.get("src_key_padding_mask"), is_causal=causal
    )
    hidden = layer.norm1(x + attended)
    want = layer.norm2(hidden + layer.linear2(layer.linear1(hidden).relu()))
    close(layer.train()(x, is_causal=causal, **masks), want)
    layer.eval()
    with torch.no_grad():
        close(layer(x, is_causal=causal, **masks), want)


def encoder(layers=2):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    layer.self_attn = module()
    with pytest.warns(UserWarning, match="use_nested_tensor is False"):
        return nn.TransformerEncoder(layer, layers)


@pytest.mark.parametrize("masks", ({}, {"src_key_padding_mask": PADDED}, {"mask": CAUSAL}))
def test_an_encoder_gives_the_same_in_training_and_in_inference(masks):
    stack, x = encoder(), tokens()
    want = stack.train()(x, **masks)
    stack.eval()
    with torch.no_grad():
        got = stack(x, **masks)
    close(got, want)
    if "mask" in masks:
        changed = torch.cat([x[:, :11], x[:, 11:] + 1], dim=1)
        close(stack(changed, **masks)[:, :11], want[:, :11])


def test_an_encoder_built_before_the_swap_stops_at_its_nested_tensors():
    """It decided on nested tensors for the attention it had; it must not run ours dense."""
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    stack = nn.TransformerEncoder(layer, 2).eval()
    for inner in stack.layers:
        inner.self_attn = module()
    with torch.no_grad(), pytest.raises(AttributeError, match="in_proj_weight"):
        stack(tokens(), src_key_padding_mask=PADDED)


def test_bool_and_float_masks_mean_the_same():
    attention, x = module(), tokens()
    want, _ = attention(x, x, x, key_padding_mask=PADDED, is_causal=True)
    floats = torch.zeros(2, 20, dtype=torch.float64).masked_fill(PADDED, -torch.inf)
    for causal in (CAUSAL, CAUSAL.isneginf()):
        got, _ = attention(x, x, x, key_padding_mask=floats, attn_mask=causal, is_causal=True)
        assert torch.equal(got, want)


def test_weights_travel_by_state_dict():
    source, target = module(seed=1), module(seed=2)
    x = tokens()
    assert relative_rms(target(x, x, x)[0], source(x, x, x)[0]) > 0.1
    assert set(source.state_dict()) == {
        f"{part}.{kind}" for part in ("in_proj", "norm", "out_proj") for kind in ("weight", "bias")
    }
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x, x, x)[0], source(x, x, x)[0])


def test_all_parameters_learn():
    attention, x = module(num_kv_heads=2), tokens()
    attention(x, x, x)[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())
    assert all(p.grad.abs().max() > 0 for p in attention.parameters())


def test_initial_parameters():
    attention = MultiheadDilatedAttention(16, 4, *BRANCHES, num_kv_heads=2)
    assert attention.in_proj.weight.abs().max() <= (6 / (16 + 32)) ** 0.5
    assert attention.out_proj.weight.abs().max() <= (6 / (16 + 16)) ** 0.5
    assert not attention.in_proj.bias.any() and not attention.out_proj.bias.any()
    assert (attention.norm.weight == 1).all() and (attention.norm.bias == 0).all()


X = torch.zeros(2, 20, 16)
BAD_CALL = {
    "weights": ({"need_weights": True}, "need_weights=True"),
    "two dimensions": ({"query": X[0]}, r"query.shape=\(20, 16\): expected \(batch, tokens, 16\)"),
    "width": ({"query": X[..., :8]}, r"query.shape=\(2, 20, 8\)"),
    "cross-attention": ({"key": X[:, :5]}, r"key.shape=\(2, 5, 16\)"),
    "other values": ({"value": X[:1]}, r"value.shape=\(1, 20, 16\)"),
    "mask without is_causal": ({"attn_mask": CAUSAL}, r"attn_mask=torch.float64 \(20, 20\)"),
    "mask of another size": (
        {"attn_mask": CAUSAL[:9, :9], "is_causal": True},
        r"attn_mask=torch.float64 \(9, 9\)",
    ),
    "mask that is not causal": (
        {"attn_mask": CAUSAL.isneginf().T, "is_causal": True},
        r"attn_mask=torch.bool \(20, 20\)",
    ),
    "mask that biases": ({"attn_mask": CAUSAL + 1.0, "is_causal": True}, "attn_mask="),
    "padding that biases": ({"key_padding_mask": torch.full((2, 20), 0.5)}, "key_padding_mask"),
    "padding shape": ({"key_padding_mask": PADDED[:1]}, r"key_padding_mask=torch.bool \(1, 20\)"),
}


@pytest.mark.parametrize("name", BAD_CALL)
def test_bad_calls_are_named(name):
    changes, message = BAD_CALL[name]
    attention = module(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        attention(**({"query": X, "key": X, "value": X} | changes))


BAD_SETTING = {
    "heads": ({"num_heads": 3}, "embed_dim=16: expected a multiple of num_heads=3"),
    "no heads": ({"num_heads": 0}, "num_heads=0"),
    "kv heads": ({"num_kv_heads": 3}, "num_kv_heads=3: expected a divisor of num_heads=4"),
    "no kv heads": ({"num_kv_heads": 0}, "num_kv_heads=0"),
    "branches": ({"branches": ([8], [1, 2])}, r"dilation_rates=\(1, 2\): expected 1 rates"),
    "head offset": ({"head_offset": "cyclic"}, "head_offset='cyclic'"),
    "backend": ({"backend": "fast"}, "backend='fast': expected one of auto, gather, sdpa"),
}


@pytest.mark.parametrize("name", BAD_SETTING)
def test_bad_settings_are_named(name):
    changes, message = BAD_SETTING[name]
    with pytest.raises(ValueError, match=message):
        module(**changes)
