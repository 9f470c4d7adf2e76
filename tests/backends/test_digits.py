"""int8 weights times rows written in digits: as exact as float32, and the same bits in every situation."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.backends import get_backend
from refimpl.backends.numba import cpu
from tests.backends.test_numba import FORMS, dense, normal

SHAPES = [(64, 128), (100, 384), (31, 640), (1, 64), (129, 1281), (3, 2), (40, 30), (33, 2050)]
ROWS = (1, 2, 3, 5, 6, 16, 31, 33, 70)


def digits(count=3, threads=2):
    """The backend as it is where there are tiles; other processors multiply words or, in their place, float32."""
    ops = get_backend("numba", threads=threads)
    ops._digits = lambda rows: count
    return ops


def error(found, exact):
    return np.abs(found - exact).max() / max(1, np.abs(exact).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 3])
def test_products_of_any_shape(shape, count):
    """Also without digits, which nobody else tries where there are tiles."""
    matrix, bias = FORMS["int8"](normal(*shape)), normal(shape[0], seed=2)
    ops = digits(count)
    weight = ops.weight(matrix)
    for rows in ROWS:
        x = normal(rows, shape[1], seed=rows)
        exact = x.astype(np.float64) @ dense(matrix).T
        assert error(ops.linear(x, weight), exact) <= 2e-6, rows
        assert error(ops.linear(x, weight, bias), exact + bias) <= 2e-6, rows


@pytest.mark.parametrize("largest", [1e-20, 1, 1e3, 1e20])
def test_rows_with_one_number_far_above_the_others(largest):
    """An outlier takes digits from the others of its block: up to 1.3e-6 were measured, and as much with BLAS."""
    x = normal(20, 1536, seed=1) * np.float32(min(1, largest))
    x[:, 700] = largest
    matrix = FORMS["int8"](normal(96, 1536))
    exact = x.astype(np.float64) @ dense(matrix).T
    assert np.abs(digits().linear(x, digits().weight(matrix)) - exact).max() <= 2e-6 * np.abs(exact).max()


def test_whole_numbers_are_exact():
    """A row of multiples of one number, up to 127 * 254**2 of them, is what its digits say, bit for bit."""
    generator = np.random.default_rng(3)
    x = generator.integers(-(127 * 254**2), 127 * 254**2, (4, 8)).astype(np.float32)
    x[:, 0] = 127 * 254**2
    matrix = np.zeros((8, 8), np.float32)
    np.fill_diagonal(matrix, 127)  # the unit of each row is then 1
    found = digits().linear(x, digits().weight(FORMS["int8"](matrix)))
    assert np.abs(found / 127 - x).max() <= 1


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_rows_without_a_number(rows):
    """NaN or infinity make their row NaN, not others; zeros give zeros, and so does next to nothing."""
    x = normal(rows + 4, 600, seed=1)
    x[0, 7], x[1, 599], x[2], x[3] = np.nan, np.inf, 0, 1e-38
    ops = digits()
    weight = ops.weight(FORMS["int8"](normal(40, 600)))
    with np.errstate(invalid="ignore"):
        found = np.concatenate([ops.linear(row[None], weight) for row in x[:4]] + [ops.linear(x, weight)])
    for first in (0, 4):
        assert np.isnan(found[first : first + 2]).all()
        assert not found[first + 2].any()
        assert np.abs(found[first + 3]).max() <= 1e-35
    assert np.isfinite(found[8:]).all()


def test_a_row_has_the_same_bits_with_any_threads_in_any_company():
    matrix, bias = FORMS["int8"](normal(100, 1400)), normal(100, seed=2)
    x = normal(600, 1400, seed=1)
    ops = digits(threads=1)
    weight = ops.weight(matrix)
    whole = ops.linear(x, weight, bias)
    for threads in (1, 2, 5):
        ops = digits(threads=threads)
        for rows in (*ROWS, 513):
            assert (ops.linear(x[:rows], weight, bias) == whole[:rows]).all(), (threads, rows)


@pytest.mark.parametrize("count", [1, 3])
def test_tiles_and_words_give_the_same_bits(count):
    if not cpu.has_tiles():
        pytest.skip("this processor has no AMX")
    ops, x = digits(count), normal(50, 1300, seed=1)
    weight = ops.weight(FORMS["int8"](normal(100, 1300)))
    numbers = range(1, 51)
    tiles = [ops.linear(x[:rows], weight) for rows in numbers]
    ops._unit = None
    for rows, found in zip(numbers, tiles, strict=True):
        assert (ops.linear(x[:rows], weight) == found).all(), rows


@pytest.mark.parametrize("count", [1, 3])
def test_rows_of_any_number_without_tiles(count):
    ops, x = digits(count, threads=1), normal(40, 1300, seed=1)
    ops._unit = None
    weight = ops.weight(FORMS["int8"](normal(100, 1300)))
    whole = ops.linear(x, weight)
    for rows in range(1, 40):
        assert (ops.linear(x[:rows], weight) == whole[:rows]).all(), rows


def test_digits_are_taken_where_there_are_tiles():
    ops = get_backend("numba")
    assert ops._digits(1) == ops._digits(40) == (3 if cpu.has_tiles() else 0)
    assert get_backend("numba", matmul_dtype="int8")._digits(16) == 1
    assert get_backend("numba", matmul_dtype="bfloat16")._digits(16) == 0
    assert get_backend("numba", matmul_dtype="int8")._digits(15) == ops._digits(15)
