"""LongNet on a GPU: the CPU's logits, and cached steps that are the whole forward pass."""

import pytest
import torch

from models import LongNetLM
from tests.models.longnet_models import config, tokens
from tests.models.test_gpu import full_float32

__all__ = ["full_float32"]  # a fixture that applies here too
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SYSTEMS = [
    ("dense", None),
    ("dilated-sdpa", None),
    ("dilated-triton", None),
    ("block-sparse", "random"),
    ("block-sparse", "top_k"),
]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("attention", "pattern"), SYSTEMS)
def test_logits_are_the_cpus_and_a_cached_steps(attention, pattern, padded, dtype, bound):
    options = {"embed_dim": 64, "block_size": 16} if pattern else {"embed_dim": 64}
    torch.manual_seed(0)
    network, ids = LongNetLM(config(attention, pattern, **options)), tokens()
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[1, :11] = True
    mask = mask if padded else None
    # Triton's kernels are for cards alone.
    same = LongNetLM(config(attention.replace("triton", "sdpa"), pattern, **options))
    same.load_state_dict(network.state_dict())
    held = torch.ones_like(ids, dtype=torch.bool) if mask is None else ~mask
    with torch.no_grad():
        of_cpu = same(ids, key_padding_mask=mask)
        network, ids = network.to("cuda", dtype), ids.cuda()
        mask = None if mask is None else mask.cuda()
        want = network(ids, key_padding_mask=mask)
        # Of bfloat16's rounding a choice of blocks may be another.
        if pattern != "top_k" or dtype == torch.float32:
            assert (want.float().cpu() - of_cpu)[held].abs().max() < bound
        prompt_mask = None if mask is None else mask[:, :19]
        _, cache = network.prefill(ids[:, :19], key_padding_mask=prompt_mask)
        for n in range(19, 45):
            got = network.step(ids[:, n : n + 1], cache)
            torch.testing.assert_close(got, want[:, n], rtol=0, atol=bound)
