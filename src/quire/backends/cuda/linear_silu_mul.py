"""linear_silu_mul on Hopper GPUs: one kernel where it was faster than two, Triton's operator for all else."""

from torch import Tensor

from quire.backends.cuda import _product, _tall_product
from quire.backends.cuda._product import why_not
from quire.backends.cuda._product_tiles import choose
from quire.backends.triton import linear_silu_mul

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "linear_silu_mul"


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See quire.ops.linear_silu_mul."""
    tile = choose(x.shape[0], *weight.shape, True) if x.shape[0] > 1 else None
    if tile and _product.fits(x, weight, bias):
        return _product.multiply(x, weight, bias, tile, gated=True)
    if _tall_product.takes(x, weight, bias):
        return _tall_product.multiply(x, weight, bias)
    return linear_silu_mul.run(x, weight, bias)
