"""What Hugging Face's models may ask of our attention and do not get: refused by name."""

import pytest
import torch

pytest.importorskip("transformers", reason="no transformers (envs/peers.txt)")

from transformers import (
    AttentionInterface,
    CodeGenConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    T5Config,
    ViTConfig,
)

from models.transformers_attention import use_block_sparse, use_dilated
from tests.models.language_models import (
    BLOCK_SPARSE,
    DILATED,
    HOLE,
    LISTS,
    SIZES,
    both,
    close,
    ids,
    model,
)


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
        (LlamaConfig(**SIZES), "is missing: use_.* of models.transformers_attention sets it"),
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


def test_a_block_mask_needs_a_length():
    with pytest.raises(ValueError, match="config.max_position_embeddings=None: expected an int"):
        use_block_sparse(ViTConfig(), "local_window", sparsity=0.5)


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
