"""Reading memory as fast as it goes: the compiled loop, for `our_machine.py`."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit("int64(int64[::1])", nogil=True, cache=True)
def sum_of(words: np.ndarray) -> int:
    """The sum, modulo 2**64, of int64 [n].  A sum of integers may be computed in any order, so many at once."""
    total = 0
    for index in range(words.size):
        total += words[index]
    return total
