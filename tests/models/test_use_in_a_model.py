"""What the README says of our attention in other people's models, run as it stands there."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import MultiheadDilatedAttention, dilated_attention

README = Path(__file__).parents[2] / "README.md"


def blocks():
    """The Python code of the section."""
    section = README.read_text().split("\n## Use it in your model\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


@pytest.mark.parametrize("code", blocks(), ids=lambda code: code.split("\n")[0])
def test_the_readme_runs(code):
    if "transformers" in code:
        pytest.importorskip("transformers", reason="no transformers (envs/peers.txt)")
    torch.manual_seed(0)
    names = {}
    exec(compile(code, README.name, "exec"), names)
    assert names["out"].shape[:2] in ((1024, 2), (2, 1024 + 8), (1, 2048 + 8))


def test_torchs_own_example_with_our_module_in_it():
    """The example of `nn.TransformerEncoderLayer`'s documentation, and one line."""
    torch.manual_seed(0)
    encoder_layer = nn.TransformerEncoderLayer(d_model=64, nhead=8, dropout=0.0)
    ours = MultiheadDilatedAttention(64, 8, [4, 8], [1, 2], batch_first=False, sub_layer_norm=False)
    ours.load_state_dict(encoder_layer.self_attn.state_dict())
    encoder_layer.self_attn = ours
    transformer_encoder = nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False)
    src = torch.rand(10, 32, 64)
    out = transformer_encoder(src)
    want = src
    for layer in transformer_encoder.layers:
        q, k, v = layer.self_attn.project(want.transpose(0, 1))
        attended = dilated_attention(q, k, v, [4, 8], [1, 2], backend="gather").flatten(2)
        want = layer.norm1(want + layer.self_attn.out_proj(attended).transpose(0, 1))
        want = layer.norm2(want + layer.linear2(layer.linear1(want).relu()))
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in transformer_encoder.parameters())


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("models.transformers_attention", "models.transformers_masks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match="make peers.*envs/peers.txt"):
        importlib.import_module("models.transformers_attention")
