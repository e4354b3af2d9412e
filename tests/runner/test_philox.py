"""Philox4x32-10 against the known answers published with Random123, and the uniforms made of it."""

import numpy as np

from quire.runner.philox import philox, uniforms

# (counter, key, result), from the kat_vectors file of Random123
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_known_answers() -> None:
    counters = tuple(np.array(word, dtype=np.uint64) for word in zip(*(c for c, _, _ in KNOWN), strict=True))
    keys = tuple(np.array(word, dtype=np.uint64) for word in zip(*(k for _, k, _ in KNOWN), strict=True))
    words = philox(counters, keys)  # type: ignore[arg-type]
    assert [tuple(row) for row in np.stack(words, axis=1).tolist()] == [result for _, _, result in KNOWN]


def test_uniforms_depend_on_each_part_of_the_key_and_on_nothing_else() -> None:
    seeds = np.array([0, 1, 2**32, 2**64 - 1, 0, 0], dtype=np.uint64)
    indices, positions = np.array([0, 0, 0, 0, 1, 0]), np.array([5, 5, 5, 5, 5, 6])
    together = uniforms(seeds, indices, positions)
    alone = [uniforms(seeds[i : i + 1], indices[i : i + 1], positions[i : i + 1])[0] for i in range(6)]
    assert together.tolist() == alone
    assert len(set(together.tolist())) == 6


def test_uniforms_are_uniform() -> None:
    count = 100_000
    numbers = uniforms(np.full(count, 9, dtype=np.uint64), np.zeros(count, dtype=np.int64), np.arange(count))
    assert 0.0 <= numbers.min() and numbers.max() < 1.0
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    chi_square = float(((counts - count / 100) ** 2 / (count / 100)).sum())
    assert chi_square < 150  # 99 degrees of freedom: exceeded once in a thousand
