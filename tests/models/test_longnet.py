"""The LongNet models: what they compute, causality, masks, memory, and their copies."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import LongNetEncoder, LongNetLM
from models.language.serving import serving_variant, why_not
from models.oracle import reference
from models.registry import VARIANTS
from tests.models.longnet_models import (
    ELSEWHERE,
    ON_CPU,
    PATTERNS,
    SYSTEMS,
    VOCAB,
    config,
    model,
    tokens,
)


def test_every_variant_serves_or_says_why_not():
    able = {name for name, variant in VARIANTS.items() if why_not(variant) is None}
    assert able == {*ON_CPU, *ELSEWHERE}
    refused = {
        "dilated-streamed": "chunk by chunk from a source",
        "published-block-sums": "that of its name is block-sparse",
        "ring-attention-pytorch": "another package's ring",
        "multihead-dilated-sdpa": "projections of its own",
        "dilted": "expected one of dense, dilated-gather",
    }
    for name, reason in refused.items():
        with pytest.raises(ValueError, match=f"attention='{name}'.*{reason}"):
            serving_variant(name)


@pytest.mark.parametrize(("attention", "pattern"), SYSTEMS)
def test_a_token_changes_nothing_before_it(attention, pattern):
    network, first = model(attention, pattern), (1, 8, 17, 30, 44)
    ids = tokens(1).repeat(1 + len(first), 1)
    for row, t in enumerate(first, start=1):
        ids[row, t:] = (ids[row, t:] + 1 + torch.arange(45 - t) % 7) % VOCAB
    with torch.no_grad():
        logits = network(ids)
        for row, t in enumerate(first, start=1):
            assert (logits[row, :t] - logits[0, :t]).abs().max() <= 1e-6
            assert (logits[row, t] - logits[0, t]).abs().max() > 1e-2
        for n in (1, 8, 23, 40):
            shorter = network(ids[:1, :n])
            torch.testing.assert_close(shorter, logits[:1, :n], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("attention", "pattern"), SYSTEMS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_padding_holds_changes_nothing(attention, pattern, side):
    network, ids = model(attention, pattern), tokens()
    padded = torch.zeros_like(ids, dtype=torch.bool)
    padded[1, slice(0, 11) if side == "left" else slice(34, 45)] = True
    others = ids.masked_fill(padded, 0)
    with torch.no_grad():
        got, want, plain = (
            network(x, key_padding_mask=mask)
            for x, mask in ((others, padded), (ids, padded), (ids, None))
        )
    assert torch.equal(got[~padded], want[~padded])
    if side == "left":
        assert (plain[1, 11:] - want[1, 11:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize(
    "attention", ["dense", "dilated-sdpa", "dilated-gather", "dilated-detached"]
)
def test_a_packed_document_is_as_alone(kind, attention):
    network, ids = model(attention, kind=kind), tokens(1)
    documents = (torch.arange(45) >= 19).long()[None]
    packed = network(ids, document_ids=documents)
    for part in (slice(0, 19), slice(19, 45)):
        torch.testing.assert_close(packed[:, part], network(ids[:, part]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS[:-1])
def test_blocks_keep_documents_apart(pattern):
    network, ids = model("block-sparse", pattern), tokens(1)
    documents = (torch.arange(45) >= 19).long()[None]
    others = torch.where(documents == 0, (ids + 1) % VOCAB, ids)
    got, want = (network(x, document_ids=documents)[:, 19:] for x in (others, ids))
    assert torch.equal(got, want)
    assert not torch.equal(network(others)[:, 19:], network(ids)[:, 19:])


def test_a_sequence_does_not_depend_on_others_of_its_batch():
    for attention, pattern in (("dilated-sdpa", None), ("block-sparse", "top_k")):
        network, ids = model(attention, pattern), tokens(3)
        for row in range(3):
            torch.testing.assert_close(network(ids)[row], network(ids[row : row + 1])[0])


def xpos_by_complex_numbers(x, longest, scale_base, sign):
    """Written apart from the model's: `x_i zeta_i^(+-n / base) exp(1j n theta_i)`, n centred."""
    half = x.shape[-1] // 2
    place = torch.arange(half, dtype=torch.float64) / half
    n = torch.arange(x.shape[1], dtype=torch.float64)[:, None, None] - longest / 2
    zeta = 1.0 if scale_base is None else ((place + 0.4) / 1.4) ** (sign * n / scale_base)
    turn = torch.polar(torch.ones(()).double(), n * 10000**-place)
    turned = torch.view_as_complex(x.contiguous().unflatten(-1, (half, 2))) * turn * zeta
    return torch.view_as_real(turned).flatten(-2)


def read_plainly(network, ids, is_causal, pattern, **masks):
    """Hidden states by the papers' formulas and the float64 oracle."""
    state, made = network.state_dict(), network.config

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        std = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / std * state[f"{name}.weight"] + state[f"{name}.bias"]

    base = made.xpos_scale_base if is_causal else None
    x = state["embedding.weight"][ids]
    for i in range(made.layers):
        name = f"layers.{i}.attention"
        y = norm(f"{name}.norm", x)
        q, k, v = (linear(f"{name}.{p}_proj", y).unflatten(-1, (-1, made.head_dim)) for p in "qkv")
        q = xpos_by_complex_numbers(q, made.max_seq_len, base, 1)
        k = xpos_by_complex_numbers(k, made.max_seq_len, base, -1)
        out, _ = reference(q, k, v, pattern=pattern, is_causal=is_causal, **masks)
        x = x + linear(f"{name}.out_proj", norm(f"{name}.inner_norm", out.flatten(2)))
        name = f"layers.{i}.feed_forward"
        y = linear(f"{name}.fc1", norm(f"{name}.norm", x))
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + linear(f"{name}.fc2", norm(f"{name}.inner_norm", y))
    return norm("norm", x), state


@pytest.mark.parametrize("attention", ["dense", "dilated-sdpa", "dilated-gather", "block-sparse"])
@pytest.mark.parametrize("tied", [True, False])
def test_it_computes_what_the_papers_say(attention, tied):
    network = model(attention, dtype=torch.float64, tied_embeddings=tied)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = tokens()
    padded = torch.zeros_like(ids, dtype=torch.bool)
    padded[1, :5] = True
    variant = network.variant
    pattern = variant.branches or (variant.masks and variant.masks.of(45, ids.device))
    with torch.no_grad():
        hidden, state = read_plainly(network, ids, True, pattern, key_padding_mask=padded)
        scores = state["embedding.weight" if tied else "head.weight"]
        want, got = hidden @ scores.T, network(ids, key_padding_mask=padded)
        # xPos' tables are float32.
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        encoder = LongNetEncoder(network.config, dtype=torch.float64)
        encoder.load_state_dict({k: v for k, v in state.items() if k != "head.weight"})
        pattern = encoder.variant.branches or (
            encoder.variant.masks and encoder.variant.masks.of(45, ids.device)
        )
        want, _ = read_plainly(encoder, ids, False, pattern, key_padding_mask=padded)
        got = encoder(ids, key_padding_mask=padded)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_weights_begin_as_the_papers_say():
    torch.manual_seed(0)
    network = LongNetLM(
        config(layers=6, embed_dim=256, ffn_dim=1024, vocab_size=2000, tied_embeddings=False)
    )
    gain, (layer, *_) = math.sqrt(math.log(12)), network.layers
    assert gain == pytest.approx(1.5764, abs=1e-4)
    xavier = lambda linear: math.sqrt(2 / sum(linear.weight.shape))  # noqa: E731
    attention, feed_forward = layer.attention, layer.feed_forward
    for linear, factor in (
        (attention.q_proj, 1),
        (attention.k_proj, 1),
        (attention.v_proj, gain),
        (attention.out_proj, gain),
        (feed_forward.fc1, gain),
        (feed_forward.fc2, gain),
    ):
        assert linear.weight.std().item() == pytest.approx(factor * xavier(linear), rel=0.02)
        assert linear.bias.count_nonzero() == 0
    for weight in (network.embedding.weight, network.head.weight):
        assert weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    # Of a model just made, all tokens are about as likely: scores have unit variance.
    loss = F.cross_entropy(
        network(tokens(4, 64))[:, :-1].flatten(0, 1), tokens(4, 64)[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(math.log(2000) + 0.5, abs=0.3)


def gradients(network, ids, **options):
    network.zero_grad()
    logits = network(ids, **options)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("attention", ["dense", "dilated-sdpa", "block-sparse"])
def test_checkpointing_changes_no_bit_of_a_gradient(attention):
    plain = model(attention, "top_k" if attention == "block-sparse" else None)
    again = type(plain)(config(attention, plain.config.pattern, checkpoint_activations=True))
    again.load_state_dict(plain.state_dict())
    runs = []
    again.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    want, got = gradients(plain, tokens()), gradients(again, tokens())
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert len(runs) == 2
    with torch.no_grad():
        again(tokens())
    assert len(runs) == 3


@pytest.mark.parametrize(("attention", "again"), [("dense", False), ("dilated-sdpa", True)])
def test_compiled_is_eager(attention, again):
    network, ids = model(attention, layers=1, checkpoint_activations=again), tokens()
    want = [network(ids).detach(), *gradients(network, ids)]
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    got = [compiled(ids).detach()]
    network.zero_grad()
    logits = compiled(ids)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    got += [p.grad for p in network.parameters()]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_it_learns_which_token_is_three_before():
    """Gradients and positions lead somewhere: only the first tokens of a segment are unknown."""
    network = model(segment_lengths=(16, 32), dilation_rates=(1, 2), vocab_size=8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        ids = torch.randint(8, (16, 32), generator=generator)
        loss = F.cross_entropy(network(ids)[:, 3:].flatten(0, 1), ids[:, :-3].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25 * math.log(8)


def test_half_precision_and_autocast():
    network, ids = model("dense"), tokens()
    want = network(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(network(ids).float(), want, rtol=0, atol=0.1)
    half = copy.deepcopy(network).to(torch.bfloat16)(ids)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), want, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("attention", "pattern"), [("dilated-sdpa", None), ("block-sparse", "random")]
)
def test_copies_compute_the_same(attention, pattern):
    network, ids = model(attention, pattern), tokens()
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(ids), network(ids))


def test_bad_input_is_told_before_any_work():
    network, ids = model(), tokens()
    bad = {
        r"tokens=list: expected a tensor": ids.tolist(),
        r"tokens=\(45,\): expected a tensor": ids[0],
        r"tokens.dtype=torch.int32: expected torch.int64": ids.int(),
        r"tokens from 0 to 50: expected 0 to vocab_size - 1 = 49": torch.tensor([[0, 50]]),
        r"tokens.shape=\(2, 0\): expected 1 token or more": ids[:, :0],
        r"65 tokens: expected at most max_seq_len=64": tokens(1, 65),
    }
    for message, value in bad.items():
        with pytest.raises(ValueError, match=message):
            network(value)
    with pytest.raises(ValueError, match="key_padding_mask=torch.int64"):
        network(ids, key_padding_mask=ids)
    with pytest.raises(ValueError, match="document_ids=torch.bool"):
        network(ids, document_ids=ids > 0)
    with pytest.raises(ValueError, match="document_ids: expected None with attention='ring-stand"):
        model("ring-standard")(ids, document_ids=ids)
    with pytest.raises(ValueError, match="document_ids: expected None with pattern='top_k'"):
        model("block-sparse", "top_k")(ids, document_ids=ids)
    with pytest.raises(ValueError, match="config=dict: expected a LongNetConfig"):
        LongNetLM({})
