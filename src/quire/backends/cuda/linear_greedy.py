"""linear_greedy on Hopper GPUs: results are compared where they are made, and never stored."""

from torch import Tensor

from quire.backends.cuda import _product
from quire.backends.cuda._product import why_not
from quire.backends.cuda._product_tiles import choose_greedy
from quire.backends.triton import linear_greedy

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "linear_greedy"


def run(x: Tensor, weight: Tensor) -> Tensor:
    """See quire.ops.linear_greedy."""
    tile = choose_greedy(x.shape[0], *weight.shape) if x.shape[0] > 1 else None
    if tile and _product.fits(x, weight, None):
        return linear_greedy.pick(*_product.likeliest(x, weight, tile))
    return linear_greedy.run(x, weight)
