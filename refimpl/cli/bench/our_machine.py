"""What `worker.py` loads to measure the limits of the machine: reading memory, and multiplying matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.kernel_cache import kernel_cache


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """Without a model. `options`: `bytes` to read, `size` of the square matrices, and how often (`repeat`)."""
    import refimpl.cli.bench

    with kernel_cache(Path(refimpl.cli.bench.__file__).parent):
        sum_of = import_module("refimpl.cli.bench.reading_kernel").sum_of
    repeat = options["repeat"]
    return {
        "what": "reading memory and multiplying matrices",
        "versions": {name: metadata.version(name) for name in ("numpy", "numba")},
        "threads": threads,
        "operations": {
            "read": lambda item: read_bytes_per_s(sum_of, options["bytes"], threads, repeat),
            "gemm": lambda item: gemm_flop_per_s(options["size"], repeat),
        },
    }


def read_bytes_per_s(
    sum_of: Callable[[np.ndarray], int], count: int, threads: int, repeat: int
) -> list[float]:
    """The rate of each of `repeat` passes in which the threads together read `count` bytes once."""
    words = np.empty(count // 8, np.int64)
    parts = np.array_split(words, threads)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        # Written by the thread that will read: a system may place a page near whoever writes to it first.
        list(pool.map(lambda part: part.fill(1), parts))
        for _ in range(repeat + 1):
            began = time.perf_counter()
            total = sum(pool.map(sum_of, parts))
            rates.append(words.nbytes / (time.perf_counter() - began))
            if total != words.size:
                raise ArithmeticError(f"the sum of {words.size} ones is {total}")
    return rates[1:]  # the first one warms up


def gemm_flop_per_s(size: int, repeat: int) -> list[float]:
    """The rate of each of `repeat` products of two float32 matrices [size, size] by NumPy's BLAS."""
    rng = np.random.default_rng(0)
    left, right = (rng.random((size, size), dtype=np.float32) for _ in range(2))
    product = left @ right
    rates = []
    for _ in range(repeat):
        began = time.perf_counter()
        np.matmul(left, right, out=product)
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return rates
