"""What is left out of Triton's interpreter for its speed is not what it checks."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="compiled here")


@triton.jit
def product(a, b, result):
    tl.store(result, a * b)


@triton.jit
def through_a_call(a, b, result):
    product(a, b, result)


@pytest.mark.parametrize("kernel", (product, through_a_call))
def test_an_index_that_its_type_does_not_hold_is_an_error(kernel):
    found = torch.zeros(1, dtype=torch.int64)
    kernel[(1,)](2**15, 2**15, found)
    assert found.item() == 2**30
    with pytest.raises(InterpreterError, match="int32 overflow detected for operation mul"):
        kernel[(1,)](2**16, 2**15, found)
    assert found.item() == 2**30
    kernel[(1,)](2**32, 2**15, found)
    assert found.item() == 2**47
