"""Hash tables in arrays: integers to integers, open addressing, for the kernels of the tokenizers.

A table is an array uint64 [slots, 2] of keys and values, so that both come with one access to memory; the
number of slots is a power of two, and at most half of them are taken.  No key is 0: that is an empty slot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

# Fibonacci hashing: the upper bits of the product depend on all bits of the key (Knuth, TAOCP 6.4).
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_UPPER_HALF = np.uint64(32)
_EMPTY = np.uint64(0)  # typed, because Numba compares uint64 with int64 as floats
_LEAST_SLOTS = 16


def build(keys: Sequence[int] | np.ndarray, values: Sequence[int] | np.ndarray) -> np.ndarray:
    """The table of `keys` (not 0) and `values` (from 0); of equal keys the last counts."""
    slots = _LEAST_SLOTS
    while slots < 2 * len(keys):
        slots *= 2
    table = np.zeros((slots, 2), np.uint64)
    insert_all(table, np.asarray(keys, np.uint64), np.asarray(values, np.uint64))
    return table


@njit(cache=True, inline="always")
def mixed(key):
    """A number from 0 to 2**32 - 1 that depends on all bits of `key`."""
    return np.int64((key * _MULTIPLIER) >> _UPPER_HALF)


@njit(cache=True)
def find(table, key):
    """The value of `key`, or -1."""
    slot = mixed(key) & (table.shape[0] - 1)
    while table[slot, 0] != _EMPTY:
        if table[slot, 0] == key:
            return np.int64(table[slot, 1])
        slot = (slot + 1) & (table.shape[0] - 1)
    return np.int64(-1)


def build_filter(keys: np.ndarray) -> np.ndarray:
    """For every hash whether one of `keys` (uint64) has it; four to eight times as many hashes as keys.

    Where most keys that are looked for are in no table, the filter says so without a trip to main memory.
    """
    size = _LEAST_SLOTS
    while size < 4 * len(keys):
        size *= 2
    present = np.zeros(size, np.bool_)
    mark_all(present, keys)
    return present


@njit(cache=True)
def find_filtered(table, present, key):
    """`find` in a table whose keys have the filter `present`."""
    if not present[mixed(key) & (present.size - 1)]:
        return np.int64(-1)
    return find(table, key)


@njit(cache=True)
def insert_all(table, keys, values):
    """Puts every key into a table that has room for them."""
    for index in range(keys.size):
        slot = mixed(keys[index]) & (table.shape[0] - 1)
        while table[slot, 0] != _EMPTY and table[slot, 0] != keys[index]:
            slot = (slot + 1) & (table.shape[0] - 1)
        table[slot, 0], table[slot, 1] = keys[index], values[index]


@njit(cache=True)
def mark_all(present, keys):
    """Sets `present` (its size a power of two) at the hash of every key."""
    for key in keys:
        present[mixed(key) & (present.size - 1)] = True
