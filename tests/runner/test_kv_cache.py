"""The KV cache: its layout, its size, and wiping slots."""

import pytest
import torch

from quire.layers.decoder import DecoderConfig
from quire.runner.kv_cache import KVCache

SIZES = DecoderConfig(
    vocab_size=10, hidden_size=8, inner_size=8, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=5, max_position=16, tied=False
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layout_and_contents(dtype: torch.dtype) -> None:
    cache = KVCache(SIZES, 7, 4, dtype, torch.device("cpu"))
    assert len(cache.layers) == 3
    for layer in cache.layers:
        assert layer.shape == (2, 7, 4, 2, 5) and layer.dtype == dtype and layer.is_contiguous()
        assert not layer.any()
        layer.fill_(1)


def test_cleared_slots_are_zero_and_no_others() -> None:
    cache = KVCache(SIZES, 7, 4, torch.float32, torch.device("cpu"))
    for layer in cache.layers:
        layer.fill_(float("nan"))
    slots = torch.tensor([4, 9, 27])
    cache.clear_slots(slots)
    for layer in cache.layers:
        flat = layer.view(2, 28, 2, 5)
        assert not flat[:, slots].any()
        assert int(flat.isnan().all(-1).all(-1).sum()) == 2 * (28 - 3)
