"""CUDA's driver through ctypes: loads compiled kernels into torch's context and launches them, within a capture too."""

import ctypes
from functools import cache

import torch

MAX_DYNAMIC_SHARED_BYTES = 8  # CUfunction_attribute


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int, what: str) -> None:
    if code:
        name = ctypes.c_char_p()
        _library().cuGetErrorName(code, ctypes.byref(name))
        raise RuntimeError(f"{what}: {(name.value or b'unknown error').decode()}")


class Kernel:
    """A kernel of which every program must be on the device at once (a cooperative launch).

    image         what NVRTC made
    num_threads   of a program
    shared_bytes  of a program
    """

    def __init__(self, image: bytes, name: str, num_threads: int, shared_bytes: int) -> None:
        torch.cuda.current_stream().synchronize()  # torch makes its context the current one
        self._num_threads, self._shared_bytes = num_threads, shared_bytes
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        driver = _library()
        _check(driver.cuModuleLoadData(ctypes.byref(self._module), image), f"loading {name}")
        _check(driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode()), f"finding {name}")
        code = driver.cuFuncSetAttribute(self._function, MAX_DYNAMIC_SHARED_BYTES, shared_bytes)
        _check(code, f"{shared_bytes} bytes of shared memory for {name}")

    def number(self, name: str) -> int:
        """An i64 that the module keeps in a variable."""
        address, size, value = ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_int64()
        driver = _library()
        code = driver.cuModuleGetGlobal_v2(ctypes.byref(address), ctypes.byref(size), self._module, name.encode())
        _check(code, f"finding {name}")
        _check(driver.cuMemcpyDtoH_v2(ctypes.byref(value), address, ctypes.c_size_t(8)), f"reading {name}")
        return value.value

    def programs_per_processor(self) -> int:
        """How many programs one multiprocessor can hold."""
        count = ctypes.c_int()
        code = _library().cuOccupancyMaxActiveBlocksPerMultiprocessor(
            ctypes.byref(count), self._function, self._num_threads, ctypes.c_size_t(self._shared_bytes)
        )
        _check(code, "occupancy")
        return count.value

    def launch(self, num_programs: int, arguments: bytes) -> None:
        """On torch's current stream; `arguments` are the bytes of the kernel's one parameter, a struct."""
        packed = ctypes.create_string_buffer(arguments, len(arguments))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(packed))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = _library().cuLaunchCooperativeKernel(
            self._function, num_programs, 1, 1, self._num_threads, 1, 1, self._shared_bytes, stream, parameters
        )
        _check(code, "launch")
