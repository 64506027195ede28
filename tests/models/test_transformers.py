"""Hugging Face's language models on our attention: logits, gradients, padding, caches, refusals."""

import pytest
import torch

pytest.importorskip("transformers", reason="no transformers (envs/peers.txt)")

from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    CodeGenConfig,
    DynamicCache,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from models.oracle import attend_rows
from models.patterns import DilatedBranches, global_local, local_window, random, strided
from models.patterns.block_leading import leading
from models.transformers_attention import BLOCK_SPARSE, DILATED, use_block_sparse, use_dilated

LISTS = ((8, 32), (1, 3))
LIMIT = 96
VOCABULARY = 53
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": LIMIT,
    # Large, so that attention is far from uniform.
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
each_model = pytest.mark.parametrize("kind", CONFIGS)
both = pytest.mark.parametrize("name", (DILATED, BLOCK_SPARSE))


def config(kind="llama", **options):
    made = CONFIGS[kind](**(SIZES | options))
    use_dilated(made, *LISTS)
    use_block_sparse(made, "random", sparsity=0.5, block_size=8, heads=4)
    return made


def model(name, made=None, **options):
    torch.manual_seed(0)
    made = config(**options) if made is None else made
    return AutoModelForCausalLM.from_config(made, attn_implementation=name).eval()


def twin(source, name):
    """The same weights with other attention."""
    other = model(name, AutoConfig.for_model(**source.config.to_dict()))
    other.load_state_dict(source.state_dict())
    return other


def ids(batch=2, n=45, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, n), generator=generator)


def close(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max())


def gradients(source, tokens, **options):
    """Logits, and the gradient of every parameter of the loss."""
    source.zero_grad()
    out = source(tokens, labels=tokens, use_cache=False, **options)
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
def test_one_branch_of_everything_is_eager_attention(kind):
    made = config(kind)
    use_dilated(made, [45], [1])
    ours = model(DILATED, made)
    got, grads = gradients(ours, ids())
    want, wanted = gradients(twin(ours, "eager"), ids())
    close(got, want)
    for name in wanted:
        close(grads[name], wanted[name])


@each_model
def test_a_full_block_mask_is_eager_attention(kind):
    made = config(kind)
    use_block_sparse(made, "local_window", sparsity=0.0, block_size=8)
    ours = model(BLOCK_SPARSE, made)
    got, grads = gradients(ours, ids())
    want, wanted = gradients(twin(ours, "eager"), ids())
    close(got, want)
    for name in wanted:
        close(grads[name], wanted[name])


LEFT, RIGHT, AROUND = (
    torch.tensor([[start <= i < end for i in range(45)] for start, end in runs]).long()
    for runs in (((0, 45), (11, 45)), ((0, 45), (0, 29)), ((3, 40), (0, 0)))
)
HOLE = LEFT.roll(3, dims=1)


@both
@pytest.mark.parametrize(
    "mask", (None, LEFT, RIGHT, AROUND), ids=("none", "left", "right", "around")
)
def test_patterns_are_the_oracles(name, mask):
    """Logits and gradients; those of padding mean nothing and are left out of the loss."""
    ours = model(name, kind="qwen2")
    kept = torch.ones(2, 45, dtype=bool) if mask is None else mask.bool()
    labels = ids().masked_fill(~kept, -100)
    results = []
    for one in (ours, by_oracle(ours, name)):
        one.zero_grad()
        out = one(ids(), labels=labels, attention_mask=mask, use_cache=False)
        out.loss.backward()
        results.append([out.logits[kept], *(x.grad for x in one.parameters())])
    for got, want in zip(*results, strict=True):
        close(got, want)
    dense = twin(ours, "eager")(ids(), attention_mask=mask).logits[kept]
    assert (results[0][0] - dense).abs().max() > 0.1


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


def greedy(source, tokens, steps, attention_mask=None):
    """Each step by the whole sequence, without a cache: the tokens, and the logits of each."""
    logits = []
    mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
    for _ in range(steps):
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        out = source(tokens, attention_mask=mask, position_ids=places, use_cache=False)
        logits.append(out.logits[:, -1])
        tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return tokens, logits


@torch.no_grad()
@both
@pytest.mark.parametrize("padded", (False, True), ids=("whole", "padded"))
def test_generating_with_a_cache_is_generating_without(name, padded):
    """From 13 tokens over the ends of segments and blocks, token by token."""
    ours = model(name, kind="qwen3")
    tokens = ids(3, 13)
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, :5] = mask[2, :12] = 0
    want, logits = greedy(ours, tokens, 28, mask)
    got = ours.generate(
        tokens, attention_mask=mask, max_new_tokens=28, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert torch.equal(got.sequences, want)
    assert isinstance(got.past_key_values, DynamicCache)
    close(torch.stack(got.logits), torch.stack(logits))


@torch.no_grad()
@both
@pytest.mark.parametrize("mask", (None, LEFT), ids=("whole", "padded"))
def test_several_tokens_at_a_time_against_a_cache(name, mask):
    """As many as 20, and as few as one; the second row's first tokens are padding."""
    ours = model(name)
    kept = torch.ones(2, 45, dtype=bool) if mask is None else mask.bool()
    want, cache = ours(ids(), attention_mask=mask).logits, DynamicCache()
    outs = []
    for start, end in ((0, 5), (5, 10), (10, 30), (30, 31), (31, 45)):
        own = None if mask is None else mask[:, :end]
        out = ours(ids()[:, start:end], attention_mask=own, past_key_values=cache)
        outs.append(out.logits)
    close(torch.cat(outs, dim=1)[kept], want[kept])


@torch.no_grad()
def test_beams_generate_as_without_a_cache():
    ours = model(DILATED)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    got = ours.generate(ids(2, 13), **options)
    assert torch.equal(got, ours.generate(ids(2, 13), use_cache=False, **options))


@torch.no_grad()
def test_packed_sequences_attend_apart():
    """By position ids that start anew, as transformers' collators pack."""
    ours = model(DILATED)
    parts = [ids(1, n, seed=n) for n in (20, 1, 24)]
    places = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    out = ours(torch.cat(parts, dim=1), position_ids=places, use_cache=False).logits
    close(out, torch.cat([ours(part).logits for part in parts], dim=1))


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
    want = gradients(ours, ids(), attention_mask=LEFT)[1]
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    got = gradients(ours, ids(), attention_mask=LEFT)[1]
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


@both
@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"output_attentions": True}, "output_attentions=True: .* cannot do this"),
        ({"attention_mask": torch.zeros(2, 1, 45, 45)}, r"attention_mask=torch.float32 \(2, 1, 45"),
        ({"attention_mask": torch.ones(2, 44).long()}, r"attention_mask.shape=\(2, 44\): expected"),
        ({"attention_mask": HOLE}, "padding before or after the tokens"),
        ({"cache_position": torch.arange(45) + 1}, "cache_position=1 to 45 and 45 keys"),
        ({"cu_seq_lens_q": torch.tensor([0, 45])}, r"cu_seq_lens_q=torch.int64 \(2,\)"),
    ),
)
@pytest.mark.filterwarnings("ignore:.*output_attentions=True")
def test_what_a_call_may_not_ask_is_refused_by_name(name, options, message):
    if options.get("attention_mask") is not None and options["attention_mask"].dim() == 2:
        options = {"position_ids": torch.arange(45)[None]} | options
    with pytest.raises(ValueError, match=message):
        model(name)(ids(), **options)


@both
def test_a_static_cache_is_refused(name):
    with pytest.raises(ValueError, match="as of a DynamicCache"):
        model(name).generate(ids(), max_new_tokens=4, cache_implementation="static")


@both
def test_dropout_of_attention_is_refused_in_training_alone(name):
    ours = model(name, attention_dropout=0.1)
    close(ours(ids()).logits, model(name)(ids()).logits)
    with pytest.raises(ValueError, match="dropout=0.1 .config.attention_dropout.: expected 0"):
        ours.train()(ids())


@both
@pytest.mark.parametrize(
    ("made", "message"),
    (
        (MistralConfig(**SIZES, sliding_window=8), "sliding_window .*=8: expected None"),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=0),
            "sliding_window .*=8: expected None",
        ),
        (Gemma2Config(**SIZES, sliding_window=8), "sliding_window .*=8: expected None"),
        (LlamaConfig(**SIZES), "is missing: models.transformers_attention.use_"),
    ),
    ids=("mistral", "qwen2", "gemma2", "no pattern"),
)
def test_what_a_model_needs_beside_is_refused_by_name(name, made, message):
    if not isinstance(made, LlamaConfig):
        use_dilated(made, *LISTS)
        use_block_sparse(made, "local_window", sparsity=0.5)
    with pytest.raises(ValueError, match=message):
        model(name, made)(ids())


@pytest.mark.parametrize(
    ("made", "message"),
    (
        (T5Config(), "config.is_encoder_decoder=True: expected a model with self-attention only"),
        (LlamaConfig(add_cross_attention=True), "config.add_cross_attention=True"),
        (CodeGenConfig(), "config=CodeGenConfig: CodeGenModel takes no attention by name"),
        ("llama", "config=str: expected a transformers config"),
    ),
)
def test_models_that_cannot_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        use_dilated(made, *LISTS)
    with pytest.raises(ValueError, match=message):
        use_block_sparse(made, "local_window", sparsity=0.5)


@pytest.mark.parametrize(
    ("use", "message"),
    (
        (lambda c: use_dilated(c, [8], [1, 2]), r"dilation_rates=\(1, 2\): expected 1 rates"),
        (lambda c: use_dilated(c, [8], [1], head_offset="?"), "head_offset='[?]': expected one of"),
        (lambda c: use_block_sparse(c, "top_k", sparsity=0.5), "pattern='top_k': expected another"),
        (lambda c: use_block_sparse(c, "ring", sparsity=0.5), "pattern='ring': expected one of"),
        (lambda c: use_block_sparse(c, "random", sparsity=1), "sparsity=1: expected at least 0"),
        (
            lambda c: use_block_sparse(c, "random", sparsity=0, heads=3),
            "heads=3: expected 1 or .* 4",
        ),
        (lambda c: use_block_sparse(c, "strided", sparsity=0, seed=3), "seed=3: strided takes no"),
        (
            lambda c: use_block_sparse(c, "random", sparsity=0, device=0),
            "device=0: random takes no",
        ),
    ),
)
def test_bad_patterns_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use(LlamaConfig(**SIZES))


def test_longer_than_the_mask_is_refused():
    with pytest.raises(ValueError, match="key has 97 tokens: .*max_position_embeddings=96"):
        model(BLOCK_SPARSE)(ids(n=97))


@both
def test_what_is_no_causal_self_attention_is_refused(name):
    """As a model that makes its own masks could call it."""
    attend = AttentionInterface()[name]
    ours = model(name).model.layers[0].self_attn
    q, k = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 9, 8)
    for options, message in (
        ({"is_causal": False}, "query has 3 tokens and key 9: expected as many"),
        ({"head_mask": torch.ones(4)}, r"head_mask=torch.float32 \(4,\)"),
        ({"s_aux": torch.ones(4)}, r"s_aux=torch.float32 \(4,\)"),
        ({"sliding_window": 4}, "sliding_window=4"),
        ({"softcap": 50.0}, "softcap=50.0"),
    ):
        with pytest.raises(ValueError, match=message):
            attend(ours, q, k, k, None, **options)
    with pytest.raises(ValueError, match=r"q.shape=\(1, 9, 4, 8\): expected at most k's 3 tokens"):
        attend(ours, torch.zeros(1, 4, 9, 8), k[:, :, :3], k[:, :, :3], None)


def test_a_part_of_the_heads_is_refused():
    """Offsets are by head, so that a part of them is other attention."""
    ours = model(DILATED).model.layers[0].self_attn
    q = torch.zeros(1, 2, 9, 8)
    with pytest.raises(ValueError, match="query has 2 heads: expected the model's 4"):
        AttentionInterface()[DILATED](ours, q, q[:, :1], q[:, :1], None)


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
