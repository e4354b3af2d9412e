"""What an operator is: a name, a torch reference, a tolerance per dtype and a maker of random inputs.

The reference defines the operator; every backend's implementation is tested against it on inputs from `make_inputs`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """Bound on ‖out − ref‖ / ‖ref‖, the reference in float64 on upcast inputs."""

    relative: float


@dataclass(frozen=True)
class OpSpec:
    """One operator's contract.

    reference    plain torch; runs on every device, so that a new device works on day one
    tolerance    dtype -> bound; a dtype that is not here is not supported
    make_inputs  (generator, dtype, device) -> keyword arguments of several cases, odd shapes included
    mutates      names of arguments that are written in place
    """

    name: str
    reference: Callable[..., Any]
    tolerance: Mapping[torch.dtype, Tolerance]
    make_inputs: Callable[[torch.Generator, torch.dtype, torch.device], Iterator[Inputs]]
    mutates: tuple[str, ...] = ()


FLOAT_TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(2e-6),
    torch.float16: Tolerance(2e-3),
    torch.bfloat16: Tolerance(1e-2),
}


def randn(generator: torch.Generator, *shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Standard normal values, drawn on the CPU so that every device sees the same ones."""
    return torch.randn(*shape, generator=generator, dtype=torch.float32).to(device=device, dtype=dtype)
