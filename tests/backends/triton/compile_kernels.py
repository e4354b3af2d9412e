"""Compiles every Triton kernel to machine code for an H200 (sm_90) as the operators would launch it, on a machine without a GPU.

Prints one JSON line a kernel: size of its code, shared memory, and how many matrix instructions it has. The operators run
for real up to the launch, on CPU tensors; the launch is replaced by a compilation from the very arguments.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import op_parity  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from quire.backends.triton import (  # noqa: E402
    _kernels_attention,
    _kernels_decode,
    _kernels_linear,
    _kernels_norm,
    _kernels_pointwise,
    _kernels_split,
    _split_keys,
    linear_greedy,
    paged_attention,
)
from quire.ops.contract import Inputs  # noqa: E402
from quire.ops.registry import implementations, specs  # noqa: E402

TARGET = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 232_448  # what one program may use there
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


MODULES = (
    _kernels_attention, _kernels_decode, _kernels_linear, _kernels_norm, _kernels_pointwise, _kernels_split,
)  # fmt: skip


def record_launches() -> None:
    """Makes every kernel print what its compilation gives in place of running."""
    for module in MODULES:
        for name, kernel in vars(module).items():
            if isinstance(kernel, JITFunction) and name.endswith("_kernel"):
                setattr(module, name, Recorder(kernel))


class Recorder:
    """Stands in for a kernel: `kernel[grid](...)` compiles it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(
        self, *arguments: Any, num_warps: int = 4, num_stages: int = 3, launch_pdl: bool = False, **named: Any
    ) -> None:
        signature, constants, aligned = {}, {}, {}
        values = [*arguments, *named.values()]
        for index, (parameter, value) in enumerate(zip(self.kernel.params, values, strict=True)):
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            signature[parameter.name] = type_of(value)
            if divisible(parameter, value):
                aligned[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": num_warps, "num_stages": num_stages, "launch_pdl": launch_pdl}
        compiled = triton.compile(source, target=TARGET, options=options)
        report(self.kernel.__name__, compiled)


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def divisible(parameter: Any, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not parameter.do_not_specialize_on_alignment
    return isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize


def report(name: str, compiled: Any) -> None:
    ptx = compiled.asm["ptx"]
    line = {
        "kernel": name,
        "cubin_bytes": len(compiled.asm["cubin"]),
        "shared_bytes": compiled.metadata.shared,
        "starts_early": "griddepcontrol.wait" in ptx,
        "matrix_instructions": ptx.count("wgmma.mma_async") + ptx.count("mma.sync"),
    }
    print(json.dumps(line), flush=True)


def calls() -> Iterator[tuple[str, Inputs]]:
    """One call of each operator at the shapes of Qwen2.5-7B in bfloat16; attention also with a window, and at 0.5B's head size."""

    def make(*size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.bfloat16)

    qkv = make(4, 36, 128)
    yield "rms_norm", {"x": make(4, 3584), "weight": make(3584), "eps": 1e-6}
    yield "rms_norm", {"x": qkv[:, :28], "weight": make(128), "eps": 1e-6}
    yield "add_rms_norm", {"x": make(4, 3584), "residual": make(4, 3584), "weight": make(3584), "eps": 1e-6}
    yield "layer_norm", {"x": make(4, 768), "weight": make(768), "bias": make(768), "eps": 1e-5}
    yield "silu_mul", {"x": make(4, 2 * 18944)}
    positions = torch.zeros(4, dtype=torch.int64)
    keys_values = {"k": qkv[:, 28:32], "v": qkv[:, 32:], "kv": make(2, 3, 16, 4, 128), "slot_mapping": positions}
    yield "rotary_write_kv", {"q": qkv[:, :28], "positions": positions, "cos_sin": torch.zeros(32, 128), **keys_values}
    yield "write_kv", keys_values
    yield "greedy", {"logits": make(4, 152_064)}
    for name in ("draw_tokens", "place_tokens", "take_tokens"):
        yield name, next(specs()[name].make_inputs(torch.Generator(), torch.bfloat16, torch.device("cpu")))
    yield (
        "count_tokens",
        next(specs()["count_tokens"].make_inputs(torch.Generator(), torch.bfloat16, torch.device("cpu"))),
    )
    yield "linear_silu_mul", {"x": make(1, 3584), "weight": make(2 * 18944, 3584)}
    yield "linear", {"x": make(1, 3584), "weight": make(4608, 3584), "bias": make(4608)}
    for q_heads, kv_heads, head_size, window in ((28, 4, 128, 0), (14, 2, 64, 0), (32, 8, 128, 4096)):
        case = ([(3, 3), (1, 600)], q_heads, kv_heads, head_size, 16, window)
        yield "paged_attention", op_parity.attention_inputs(case, torch.bfloat16)


def main() -> None:
    record_launches()
    for module in (*implementations("triton").values(), _split_keys):
        if hasattr(module, "dependent"):
            module.dependent = lambda: {"DEPENDENT": True, "launch_pdl": True}  # as on an H200
    paged_attention.shared_memory_bytes = lambda: SHARED_BYTES  # type: ignore[assignment]
    modules = implementations("triton")
    for name, inputs in calls():
        modules[name].run(**inputs)
    linear_greedy.pick(torch.zeros(4, 264), torch.zeros(4, 264, dtype=torch.int32))


if __name__ == "__main__":
    main()
