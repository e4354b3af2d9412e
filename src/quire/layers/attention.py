"""Attention over the paged KV cache.

What the last layer computes after its keys and values is read by nobody but those who want its hidden states, and most steps want
those of each sequence's last token alone (ForwardBatch.last_rows): so attention of the last layer has these rows for output, and
what follows it in the model is as short.
"""

from torch import Tensor, nn

from quire.layers.build import Build
from quire.layers.rotary import Rotary
from quire.ops.forward_batch import ForwardBatch


class Attention(nn.Module):
    """Writes this step's keys and values into the cache of layer `layer`, then attends to all that its sequence has there.

    rope    turns queries and keys by their positions first; None = positions are not its business
    scale   multiplies q·k before softmax; None = head_dim ** -0.5
    window  a token sees itself and the window-1 tokens before it; 0 = all before it
    """

    def __init__(
        self,
        build: Build,
        layer: int,
        num_heads: int,
        head_dim: int,
        rope: Rotary | None = None,
        scale: float | None = None,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.ops = build.ops
        self.layer = layer
        self.out_size = num_heads * head_dim
        self.rope = rope
        self.scale = head_dim**-0.5 if scale is None else scale
        self.window = window

    def forward(self, q: Tensor, k: Tensor, v: Tensor, fwd: ForwardBatch) -> Tensor:
        """q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq · D], or those of its rows that `kept` tells; gives q and k away."""
        kv = fwd.kv_caches[self.layer]
        if self.rope is not None and not self._keeps_last_rows(fwd):
            cos_sin = self.rope.cos_sin
            return self.ops.rotary_attention(q, k, v, cos_sin, kv, fwd, self.scale, self.window).view(-1, self.out_size)
        if self.rope is None:
            self.ops.write_kv(k, v, kv, fwd.slot_mapping)
        else:
            q = self.rope(fwd.positions, q, k, v, kv, fwd.slot_mapping)
        if self._keeps_last_rows(fwd):
            q, fwd = self.kept(q, fwd), fwd.of_last_rows()
        return self.ops.paged_attention(q, kv, fwd, self.scale, self.window).view(-1, self.out_size)

    def kept(self, x: Tensor, fwd: ForwardBatch) -> Tensor:
        """Of x [T, ...] the rows that this layer has output for: all, or in the last layer those whose hidden states are wanted."""
        return x[fwd.last_rows] if self._keeps_last_rows(fwd) else x

    def _keeps_last_rows(self, fwd: ForwardBatch) -> bool:
        return fwd.last_rows is not None and self.layer == len(fwd.kv_caches) - 1
