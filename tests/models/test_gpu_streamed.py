"""Streaming on a CUDA device: the sequence in one piece, from every source."""

import numpy as np
import pytest
import torch

from models import dilated_attention
from models.sources import GeneratedSource, HostSource, MappedSource
from models.streamed import StoreInto, streamed_dilated_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPE = {"heads": 8, "kv_heads": 4, "head_dim": 64}
N, BRANCHES = 10000, ((1024, 2048), (1, 2))


def tokens(dtype):
    source = GeneratedSource(N, **SHAPE, dtype=dtype, device="cuda", block=4096)
    return source, [x.clone() for x in source.read(0, N)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("branches", [BRANCHES, ((1024, 2048, N), (1, 2, 64))])
@pytest.mark.parametrize("is_causal", [False, True])
def test_chunks_are_the_sequence_in_one_piece(dtype, branches, is_causal):
    source, tensors = tokens(dtype)
    whole = dilated_attention(*tensors, *branches, is_causal=is_causal, return_lse=True)
    out, lse = torch.empty(whole[0].shape, dtype=dtype), torch.empty(whole[1].shape)
    sink = StoreInto(out, lse)
    streamed_dilated_attention(source, *branches, sink=sink, is_causal=is_causal)
    step = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, whole[0].cpu(), rtol=step, atol=step)
    torch.testing.assert_close(lse, whole[1].cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_padding_and_targets_on_either_device(device):
    source, tensors = tokens(torch.float16)
    mask = torch.rand(1, N, device="cuda") < 0.3
    mask[:, 3000:6000] = True
    options = {"is_causal": True, "key_padding_mask": mask}
    held = [x.masked_fill(mask[:, :, None, None], torch.nan).cpu() for x in tensors]
    source = HostSource(tensors[0].cpu(), *held[1:], "cuda")
    out = torch.empty(held[0].shape, dtype=torch.float32, device=device)
    lse = torch.empty((1, SHAPE["heads"], N), device=device)
    for branches in (BRANCHES, ((1024, 2048, N), (1, 2, 64))):
        expected, expected_lse = dilated_attention(*tensors, *branches, return_lse=True, **options)
        streamed_dilated_attention(source, *branches, sink=StoreInto(out, lse), **options)
        torch.testing.assert_close(out.cuda(), expected.float(), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(lse.cuda(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["host", "mapped"])
@pytest.mark.parametrize("chunk", [2048, 6144])
def test_chunks_copied_ahead_are_those_of_the_generator(tmp_path, kind, chunk):
    source, tensors = tokens(torch.float16)
    held = [x.cpu() for x in tensors]
    copied = HostSource(*held, "cuda")
    if kind == "mapped":
        paths = [tmp_path / f"{name}.npy" for name in "qkv"]
        for path, x in zip(paths, held, strict=True):
            np.save(path, x.numpy())
        copied = MappedSource(*paths, "cuda")
    outs = []
    for one in (source, copied):
        outs.append(torch.empty(tensors[0].shape, dtype=torch.float16))
        streamed_dilated_attention(one, *BRANCHES, sink=StoreInto(outs[-1]), chunk=chunk)
    assert torch.equal(*outs)
    # Out of order too: what was on its way is let go.
    for start, stop in ((4096, 6144), (0, 2048), (9000, N)):
        for got, x in zip(copied.read(start, stop), tensors, strict=True):
            assert torch.equal(got, x[:, start:stop])
