"""The chi-square test of drawn tokens against the distribution that they should come from."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MIN_EXPECTED = 5.0  # of a bin; rarer tokens share one


def p_value(tokens: Iterable[int], probabilities: NDArray[np.float64]) -> float:
    """How likely counts at least as uneven as those of `tokens` are, drawn from `probabilities` [V] (Wilson and Hilferty's
    approximation of the chi-square distribution's tail)."""
    counts = np.bincount(list(tokens), minlength=len(probabilities)).astype(float)
    expected = probabilities / probabilities.sum() * counts.sum()
    common = expected >= MIN_EXPECTED
    found, wanted = (
        np.append(counts[common], counts[~common].sum()),
        np.append(expected[common], expected[~common].sum()),
    )
    if wanted[-1] < MIN_EXPECTED:  # too few even together: they go to their neighbour
        found, wanted = np.append(found[:-2], found[-2:].sum()), np.append(wanted[:-2], wanted[-2:].sum())
    statistic, freedom = float(((found - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))
