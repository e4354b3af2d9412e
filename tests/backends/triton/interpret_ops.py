"""Runs every Triton operator under Triton's interpreter on the CPU and prints one JSON line a case.

A program of its own, because TRITON_INTERPRET must be set before anything imports triton.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import op_parity  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from quire.backends.triton import _split_keys, _support  # noqa: E402
from quire.ops.contract import Inputs, OpSpec  # noqa: E402
from quire.ops.registry import implementations, specs  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def accept_new_numpy() -> None:
    """Loop bounds are arrays of one element in Triton 3.6's interpreter; NumPy 2.4 no longer takes those for integers."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def multiply_bfloat16() -> None:
    """The interpreter keeps bfloat16 as its 16 bits and would multiply those as integers; widen the operands of a dot first."""
    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def widen(operand: Any) -> Any:
        if operand.dtype.scalar != triton.language.bfloat16:
            return operand
        return interpreter.TensorHandle((operand.data.astype("uint32") << 16).view("float32"), triton.language.float32)

    def patched(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, widen(a), widen(b), *rest)

    builder.create_dot = patched


def all_cases(spec: OpSpec, dtype: torch.dtype) -> Iterator[Inputs]:
    yield from op_parity.cases(spec, dtype, seed=7)
    if spec.name == "paged_attention":
        yield from (op_parity.attention_inputs(case, dtype) for case in op_parity.SMALL_ATTENTION)


def main() -> None:
    accept_new_numpy()
    multiply_bfloat16()
    torch.set_num_threads(1)
    # What the kernels would ask of a device: an H200's shared memory.
    _support.shared_memory_bytes = lambda: 232_448  # type: ignore[assignment]
    contracts = specs()
    only = sys.argv[1:]
    for name, module in implementations("triton").items():
        if only and name not in only:
            continue
        if name == "paged_attention":
            module.shared_memory_bytes = _support.shared_memory_bytes
        for dtype_name, dtype in DTYPES.items():
            for index, inputs in enumerate(all_cases(contracts[name], dtype)):
                # Splits of few sequences, and of many.
                _split_keys.splits = [lambda num_sequences: (64, 64), lambda num_sequences: (256, 32)][index % 2]
                errors = op_parity.relative_errors(contracts[name], module.run, inputs, "cpu")
                bound = contracts[name].tolerance[dtype].relative
                print(
                    json.dumps({"op": name, "dtype": dtype_name, "case": index, "errors": errors, "bound": bound}),
                    flush=True,
                )


if __name__ == "__main__":
    main()
