"""Triton kernels, one file a kernel; each names its plain PyTorch twin in line one."""

from importlib.util import find_spec

from models.kernels.withdrawn import why_withdrawn as why_withdrawn

# Not everywhere that PyTorch is: a CPU build brings none. The modules here import it.
try:
    HAS_TRITON = find_spec("triton") is not None
except ModuleNotFoundError:  # an import hook that refuses it
    HAS_TRITON = False
MISSING = "the package triton is not installed"
