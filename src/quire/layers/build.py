"""Build: everything a layer must know besides its own sizes, in one argument."""

from dataclasses import dataclass

import torch

from quire.ops.registry import Ops
from quire.quant.none import Unquantized


@dataclass(frozen=True)
class Build:
    """How to build the layers of a model.

    ops            chosen implementation of each operator
    dtype          of weights and activations
    max_model_len  positions that rotary tables must cover
    quant          how linear layers keep their weights
    device         where parameters are created; "meta" allocates nothing, the loader puts the real ones in place
    """

    ops: Ops
    dtype: torch.dtype
    max_model_len: int
    quant: Unquantized
    device: torch.device = torch.device("meta")

    @classmethod
    def plain(cls, ops: Ops, dtype: torch.dtype, max_model_len: int) -> "Build":
        """Layers with plain weights, on meta."""
        return cls(ops, dtype, max_model_len, Unquantized(ops.linear, ops.linear_silu_mul))
