"""KVCache: the keys and values of all tokens in flight, in blocks."""

import numpy as np
import torch
from torch import Tensor

from quire.layers.decoder import DecoderConfig


def bytes_per_block(sizes: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return sizes.num_layers * 2 * block_size * sizes.num_kv_heads * sizes.head_dim * dtype.itemsize


class KVCache:
    """One tensor [2, N, P, Hkv, D] a layer: keys then values of N blocks of P token slots.

    Slot = block_id * P + offset. All slots start as zeros, so that no kernel ever meets a stale NaN. Block 0 belongs to nobody.
    """

    def __init__(
        self, sizes: DecoderConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (sizes.num_layers, 2, num_blocks, block_size, sizes.num_kv_heads, sizes.head_dim)
        whole = _zeros(shape, dtype, device)
        self.block_size = block_size
        self.layers: list[Tensor] = list(whole.unbind(0))

    def clear_slots(self, slots: Tensor) -> None:
        """Zeroes the keys and values at `slots` [n] int64 in every layer."""
        for kv in self.layers:
            kv.view(2, -1, *kv.shape[3:])[:, slots] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's zeros are untouched pages: the machine gives memory only to blocks that are used.
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
