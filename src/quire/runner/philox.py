"""Random numbers by counter: a number depends on its key and counter alone, never on what was drawn before it.

Philox4x32-10, from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Integer arithmetic: the same everywhere.
"""

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]
MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10


def philox(counter: tuple[UInt64s, UInt64s, UInt64s, UInt64s], key: tuple[UInt64s, UInt64s]) -> tuple[UInt64s, ...]:
    """Four random 32-bit words a row; counter and key words are [n] uint64 below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & MASK, (p0 >> SHIFT) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def uniforms(seeds: UInt64s, indices: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits a row, keyed by (seed, sequence index, position of the token drawn)."""
    zero = np.zeros(len(seeds), dtype=np.uint64)
    counter = (positions.astype(np.uint64), indices.astype(np.uint64), zero, zero)
    high, low, _, _ = philox(counter, (seeds & MASK, seeds >> SHIFT))
    words = (high >> np.uint64(5)) * np.uint64(2**26) + (low >> np.uint64(6))
    numbers: NDArray[np.float64] = words.astype(np.float64) / 2.0**53
    return numbers
