"""The ring's hops on a GPU, by every backend: virtual ranks on one card, and NCCL with one rank."""

import pytest
import torch
import torch.distributed as dist

from models.patterns import DilatedBranches, local_window
from models.ring import Grid, ring_attention, simulated_ring_attention
from models.ring.call import BACKENDS
from tests.models.test_gpu import check, every_dtype, full_float32, tensors

__all__ = ["full_float32"]  # a fixture that applies here too
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
N = 1999
PATTERNS = {
    "dense": None,
    "dilated": DilatedBranches((256, 1024, 4096), (1, 2, 6)),
    "blocks": local_window(N, sparsity=0.7),
}


@every_dtype
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "auto"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("order", ["contiguous", "zigzag", "striped", Grid("hilbert")], ids=str)
def test_virtual_ranks(order, kind, is_causal, backend, dtype):
    def attention(q, k, v, **options):
        return simulated_ring_attention(
            q, k, v, world_size=4, order=order, pattern=PATTERNS[kind], backend=backend, **options
        )

    # The oracle counts on the device, and the plan reads the mask wherever it lies.
    pattern = PATTERNS["blocks"].to("cuda") if kind == "blocks" else PATTERNS[kind]
    inputs = tensors(dtype, n=N, heads=6, kv_heads=2, fused=True)
    check(attention, pattern, *inputs, is_causal)


def test_nccl_with_one_rank_is_one_device(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        inputs = tensors(torch.float16, n=N)
        check(ring_attention, None, *inputs, True)
    finally:
        dist.destroy_process_group()
