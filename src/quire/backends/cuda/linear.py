"""linear on Hopper GPUs: own products where they were faster than the matrix library, Triton's operator for all else."""

from torch import Tensor

from quire.backends.cuda import _product
from quire.backends.cuda._product import why_not
from quire.backends.cuda._product_tiles import choose
from quire.backends.triton import linear

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "linear"


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See quire.ops.linear."""
    tile = choose(x.shape[0], *weight.shape, False) if x.shape[0] > 1 else None
    if tile and _product.fits(x, weight, bias):
        return _product.multiply(x, weight, bias, tile)
    return linear.run(x, weight, bias)
