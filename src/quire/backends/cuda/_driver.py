"""CUDA's driver through ctypes: loads compiled kernels into torch's context and launches them, within a capture too."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

MAX_DYNAMIC_SHARED_BYTES = 8  # CUfunction_attribute
CLUSTER_DIMENSION, PROGRAMMATIC_STREAM_SERIALIZATION = 4, 6  # CUlaunchAttributeID
Grid = tuple[int, int, int]


class _Value(ctypes.Union):
    _fields_ = [("room", ctypes.c_char * 64), ("sizes", ctypes.c_uint * 3), ("flag", ctypes.c_int)]


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("gap", ctypes.c_char * 4), ("value", _Value)]


class _Configuration(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    ]


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def num_processors() -> int:
    """Multiprocessors of the current device."""
    return _num_processors(torch.cuda.current_device())


@cache
def _num_processors(device_index: int) -> int:
    return int(torch.cuda.get_device_properties(device_index).multi_processor_count)


@cache
def _can_start_early(device_index: int) -> bool:
    return torch.cuda.get_device_capability(device_index) >= (9, 0)


def _check(code: int, what: str) -> None:
    if code:
        name = ctypes.c_char_p()
        _library().cuGetErrorName(code, ctypes.byref(name))
        raise RuntimeError(f"{what}: {(name.value or b'unknown error').decode()}")


class Kernel:
    """A kernel on one device, which must be the current one whenever it is loaded or launched, as for Triton's: the driver would look
    for code and default streams in the current device's context, and launch sizes come from the current device too.

    image         what NVRTC made
    num_threads   of a program
    shared_bytes  of a program
    """

    def __init__(self, device: torch.device, image: bytes, name: str, num_threads: int, shared_bytes: int) -> None:
        self._device_index, self._name = device.index, name
        self._check_device()
        torch.cuda.current_stream().synchronize()  # torch makes its context the current one
        self._num_threads, self._shared_bytes = num_threads, shared_bytes
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        driver = _library()
        _check(driver.cuModuleLoadData(ctypes.byref(self._module), image), f"loading {name}")
        _check(driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode()), f"finding {name}")
        code = driver.cuFuncSetAttribute(self._function, MAX_DYNAMIC_SHARED_BYTES, shared_bytes)
        _check(code, f"{shared_bytes} bytes of shared memory for {name}")

    def _check_device(self) -> None:
        current = torch.cuda.current_device()
        if current != self._device_index:
            raise RuntimeError(
                f"the kernel {self._name} is for cuda:{self._device_index} and the current device is cuda:{current}; "
                f"begin this thread with torch.cuda.set_device({self._device_index})"
            )

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
        """On torch's current stream, every program on the device at once; `arguments`: the bytes of the one parameter, a struct."""
        self._check_device()
        packed = ctypes.create_string_buffer(arguments, len(arguments))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(packed))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = _library().cuLaunchCooperativeKernel(
            self._function, num_programs, 1, 1, self._num_threads, 1, 1, self._shared_bytes, stream, parameters
        )
        _check(code, "launch")

    def launch_early(self, grid: Grid, cluster: Grid, arguments: Sequence[Any]) -> None:
        """On torch's current stream, in clusters; programs may start before the kernel ahead ends, and wait for it themselves. Devices
        before 9.0 know neither: there the kernel ahead ends first.

        arguments  ctypes values; tensors and None stand for their addresses
        """
        self._check_device()
        values = [ctypes.c_void_p(_address(a)) if a is None or isinstance(a, Tensor) else a for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        attributes = (_Attribute * 2)()
        attributes[0].id, attributes[0].value.flag = PROGRAMMATIC_STREAM_SERIALIZATION, 1
        attributes[1].id, attributes[1].value.sizes = CLUSTER_DIMENSION, cluster
        configuration = _Configuration(
            grid, (self._num_threads, 1, 1), self._shared_bytes, torch.cuda.current_stream().cuda_stream, attributes,
            1 + (cluster != (1, 1, 1)) if _can_start_early(self._device_index) else 0,
        )  # fmt: skip
        _check(_library().cuLaunchKernelEx(ctypes.byref(configuration), self._function, pointers, None), "launch")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
