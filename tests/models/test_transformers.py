"""Hugging Face's language models on our attention: logits, gradients, padding, packing."""

import pytest
import torch

pytest.importorskip("transformers", reason="no transformers (envs/peers.txt)")

from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
)

from models.oracle import attend_rows, reference
from models.padded_rows import PackedRows
from models.patterns import DilatedBranches, global_local, local_window, random, strided
from models.patterns.block_leading import leading
from models.transformers_attention import use_block_sparse, use_dilated
from tests.models.language_models import (
    AROUND,
    BLOCK_SPARSE,
    DILATED,
    LEFT,
    LIMIT,
    LISTS,
    RIGHT,
    both,
    close,
    config,
    each_model,
    ids,
    model,
    twin,
)


def gradients(source, tokens, mask=None):
    """Logits, and the gradient of every parameter of the loss of what comes after a token."""
    source.zero_grad()
    labels = tokens.clone()
    if mask is not None:
        labels[mask == 0] = -100
        labels[:, 1:][mask[:, :-1] == 0] = -100
    out = source(tokens, labels=labels, attention_mask=mask, use_cache=False)
    out.loss.backward()
    return out.logits, {name: x.grad for name, x in source.named_parameters()}


def oracle(module, query, key, value, attention_mask, scaling, **_):
    """The float64 oracle as attention of a model: positions from each row's first token."""
    outs = []
    for row, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        n = q.shape[1]
        kept = torch.ones(n, dtype=bool) if attention_mask is None else attention_mask[row]
        out = torch.zeros(n, *q.shape[::2], dtype=torch.float64)
        if not kept.any():
            outs.append(out)
            continue
        q, k, v = (x.transpose(0, 1)[None, kept].double() for x in (q, k, v))
        pattern = module.config.patterns[module.config.wanted](q.shape[1])
        rows = torch.arange(q.shape[1])
        options = {"pattern": pattern, "is_causal": True, "scale": scaling}
        outs.append(out.index_put((kept,), attend_rows(q, k, v, rows, **options)[0][0]))
    return torch.stack(outs).to(query.dtype), None


def padding(attention_mask=None, **_):
    return attention_mask


AttentionInterface.register("oracle", oracle)
AttentionMaskInterface.register("oracle", padding)
WHOLE = random(LIMIT, sparsity=0.5, block_size=8, heads=4, is_causal=True)
PATTERNS = {
    DILATED: lambda n: DilatedBranches(*LISTS),
    BLOCK_SPARSE: lambda n: leading(WHOLE, -(-n // 8)),
}


def by_oracle(source, name):
    other = twin(source, "oracle")
    other.config.patterns, other.config.wanted = PATTERNS, name
    return other


@each_model
@both
def test_all_pairs_are_eager_attention(kind, name):
    """One branch of everything, a full block mask; the second row's first tokens are padding."""
    made = config(kind)
    use_dilated(made, [45], [1])
    use_block_sparse(made, "local_window", sparsity=0.0, block_size=8)
    ours = model(name, made)
    got, grads = gradients(ours, ids(), LEFT)
    want, wanted = gradients(twin(ours, "eager"), ids(), LEFT)
    close(got[LEFT.bool()], want[LEFT.bool()])
    for parameter in wanted:
        close(grads[parameter], wanted[parameter])


@both
@pytest.mark.parametrize(
    "mask", (None, LEFT, RIGHT, AROUND), ids=("none", "left", "right", "around")
)
def test_patterns_are_the_oracles(name, mask):
    """Logits and gradients; those of padding mean nothing."""
    ours = model(name, kind="qwen2")
    kept = torch.ones(2, 45, dtype=bool) if mask is None else mask.bool()
    got, grads = gradients(ours, ids(), mask)
    want, wanted = gradients(by_oracle(ours, name), ids(), mask)
    close(got[kept], want[kept])
    for parameter in wanted:
        close(grads[parameter], wanted[parameter])
    dense = twin(ours, "eager")(ids(), attention_mask=mask).logits[kept]
    assert (got[kept] - dense).abs().max() > 0.1


@both
@pytest.mark.parametrize("side", ("left", "right"))
def test_a_sequence_gives_the_same_alone_and_padded(name, side):
    ours = model(name)
    lengths = (45, 30, 1)
    tokens, mask = ids(3), torch.zeros(3, 45, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, slice(45 - n, 45) if side == "left" else slice(0, n)] = 1
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    out = ours(tokens, attention_mask=mask, position_ids=places).logits
    for row in range(3):
        kept = mask[row].bool()
        close(out[row, kept], ours(tokens[row, kept][None]).logits[0])


@both
def test_a_masked_token_may_hold_anything(name):
    ours = model(name)
    embedded = ours.get_input_embeddings()(ids()).detach()
    want = ours(inputs_embeds=embedded, attention_mask=LEFT).logits[LEFT.bool()]
    embedded[~LEFT.bool()] = torch.nan
    got = ours(inputs_embeds=embedded, attention_mask=LEFT).logits[LEFT.bool()]
    assert torch.equal(got, want)


@torch.no_grad()
def test_packed_sequences_attend_apart():
    """By position ids that start anew, as transformers' collators pack."""
    ours = model(DILATED)
    parts = [ids(1, n, seed=n) for n in (20, 1, 24)]
    places = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    out = ours(torch.cat(parts, dim=1), position_ids=places, use_cache=False).logits
    close(out, torch.cat([ours(part).logits for part in parts], dim=1))


@torch.no_grad()
def test_packed_sequences_under_block_masks():
    """Blocks are counted from the row's start."""
    attend = AttentionInterface()[BLOCK_SPARSE]
    layer = model(BLOCK_SPARSE).model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 45, 8, generator=generator) for heads in (4, 2, 2))
    packed = PackedRows(torch.tensor([[0] * 20 + [1] * 25]))
    out, _ = attend(layer, q, k, v, packed)
    options = {"pattern": leading(WHOLE, 6), "is_causal": True, "document_ids": packed.document_ids}
    want, _ = reference(*(x.transpose(1, 2) for x in (q, k, v)), **options)
    close(out, want.float())


@torch.no_grad()
@both
def test_what_changes_nothing_is_let_through(name):
    ours = model(name)
    out = ours(
        ids(), labels=ids(), num_items_in_batch=torch.tensor(88), output_hidden_states=True,
        use_cache=False, return_dict=True,
    )  # fmt: skip
    assert torch.equal(out.logits, ours(ids()).logits)
    assert len(out.hidden_states) == 3


@torch.no_grad()
@both
def test_a_saved_model_keeps_its_pattern(name, tmp_path):
    ours = model(name)
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name).eval()
    assert again.config.long_context_dilated == {
        "segment_lengths": [8, 32], "dilation_rates": [1, 3], "head_offset": "modulo",
    }  # fmt: skip
    assert torch.equal(again(ids()).logits, ours(ids()).logits)
    again.set_attn_implementation("eager")
    assert (again(ids()).logits - ours(ids()).logits).abs().max() > 0.1
    again.set_attn_implementation(name)
    assert torch.equal(again(ids()).logits, ours(ids()).logits)


@both
def test_checkpoints_give_the_same_gradients(name):
    ours = model(name).train()
    want = gradients(ours, ids(), LEFT)[1]
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    got = gradients(ours, ids(), LEFT)[1]
    for one in want:
        close(got[one], want[one])


@both
def test_a_compiled_model_gives_the_same(name):
    ours = model(name, num_hidden_layers=1)
    compiled = torch.compile(ours, backend="eager")
    for mask in (None, LEFT):
        with torch.no_grad():
            want = ours(ids(), attention_mask=mask, use_cache=False).logits
            close(compiled(ids(), attention_mask=mask, use_cache=False).logits, want)


@both
def test_half_precision_is_within_twice_eager_attentions_own(name):
    """Against the same weights in float32; eager attention for its own pattern."""
    made = config()
    use_dilated(made, [45], [1])
    use_block_sparse(made, "local_window", sparsity=0.0, block_size=8)
    ours = model(name, made)
    with torch.no_grad():
        want = ours(ids()).logits
        errors = [
            (one.bfloat16()(ids()).logits - want).square().mean()
            for one in (ours, twin(ours, "eager"))
        ]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize(
    ("pattern", "options", "build"),
    (
        ("local_window", {}, local_window),
        ("global_local", {"global_blocks": 2}, global_local),
        ("strided", {"heads": 4}, strided),
        ("random", {"seed": 3}, random),
    ),
)
def test_every_builder_has_its_options(pattern, options, build):
    made = config()
    use_block_sparse(made, pattern, sparsity=0.7, block_size=4, **options)
    ours = model(BLOCK_SPARSE, made)
    whole = build(LIMIT, sparsity=0.7, block_size=4, is_causal=True, **options)
    other = by_oracle(ours, BLOCK_SPARSE)
    other.config.patterns = {BLOCK_SPARSE: lambda n: leading(whole, -(-n // 4))}
    with torch.no_grad():
        close(ours(ids()).logits, other(ids()).logits)


def test_without_causality_tokens_attend_both_ways():
    ours = model(DILATED).model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 20, 8, generator=generator) for heads in (4, 2, 2))
    out, weights = AttentionInterface()[DILATED](ours, q, k, v, None, scaling=0.2, is_causal=False)
    rows = torch.arange(20)
    options = {"pattern": DilatedBranches(*LISTS), "scale": 0.2}
    want, _ = attend_rows(*(x.transpose(1, 2).double() for x in (q, k, v)), rows, **options)
    close(out, want.float())
    assert weights is None
