"""decode_layers: one decoding step of all layers of a decoder, from token ids to hidden states, in one call.

It is quire.ops.decode_step without the head, for steps of so many rows that the head is better joined with the choice of tokens. What is
gained over layers one by one lies between them: an implementation may join a norm with the products before and after it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops import decode_step
from quire.ops.contract import Inputs, OpSpec
from quire.ops.decode_step import DecoderTensors, hidden_states
from quire.ops.forward_batch import ForwardBatch


def decode_layers(net: DecoderTensors, fwd: ForwardBatch) -> Tensor | None:
    """One step of B sequences with one query each: writes their keys and values to the caches, returns hidden states [B, H], normed.

    net, fwd  as in quire.ops.decode_step; rows of length 0 take no part
    Returns   None, having done nothing, where an implementation has nothing faster than the layers one by one for this step or these sizes
    """
    return hidden_states(net, fwd)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    yield from decode_step.make_inputs(generator, dtype, device)


SPEC = OpSpec("decode_layers", decode_layers, decode_step.TOLERANCES, make_inputs)
