"""Random numbers that depend on (seed, row, position) alone.

There is no state: what a row draws does not depend on its neighbours, on the backend, or on how
often `generate()` was called before.  The mixing function is SplitMix64 (Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", 2014), applied once for each of the numbers.
"""

from __future__ import annotations

import secrets

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def fresh_seed() -> int:
    """A seed that nobody can foresee."""
    return secrets.randbits(63)


def uniform(seed: int, row: int, position: int, *further: int) -> float:
    """A number from [0, 1), a multiple of 2**-53.  `further` tells several of one position apart."""
    state = 0
    for number in (seed, row, position, *further):
        state = _mix((state ^ number) + _GOLDEN)
    return (state >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z &= _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)
