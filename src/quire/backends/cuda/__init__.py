"""Kernels in CUDA C++, compiled at run time by the library that comes with torch."""
