"""Triton kernels, one file a kernel; each names its plain PyTorch twin in line one."""
