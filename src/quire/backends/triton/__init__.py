"""Triton kernels for NVIDIA GPUs. `<op>.py` is what the registry finds; `_kernels_*.py` import triton and load on first use."""
