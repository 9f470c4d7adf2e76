"""Sets of words as tries in arrays: which words begin at a place is found by walking along the text.

The edges are a hash table (`hashing.py`) from a node and a symbol (code point or byte) to the next node; the
root is node 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numba import njit

from refimpl.tokenizer.kernels import hashing

_SYMBOL_BITS = np.uint64(21)  # a code point


def build(words: Iterable[Sequence[int]], values: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the trie of `words`, and by node the value of the word that ends there, or -1."""
    edges: dict[tuple[int, int], int] = {}
    value_of_node = [-1]
    for word, value in zip(words, values, strict=True):
        node = 0
        for symbol in word:
            node = edges.setdefault((node, symbol), len(value_of_node))
            if node == len(value_of_node):
                value_of_node.append(-1)
        value_of_node[node] = value
    keys = [(node + 1) << 21 | symbol for node, symbol in edges]
    return hashing.build(keys, list(edges.values())), np.array(value_of_node, np.int32)


@njit(cache=True, inline="always")
def follow(edges, node, symbol):
    """The node to which `symbol` leads from `node`, or -1."""
    return hashing.find(edges, np.uint64(node + 1) << _SYMBOL_BITS | np.uint64(symbol))
