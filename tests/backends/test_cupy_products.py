"""Matrix products of the cupy backend, against float64: every form of weights, every length, few rows and many.

Errors are bounded relative to the sum of the magnitudes that are added up. The largest that were seen with the
kernels on the CPU were 0.9e-7 for few rows and, with the CPU's products in place of cuBLAS, 1.9e-7 for many.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refimpl.backends import to_dtype
from refimpl.backends.quantized import NF4Matrix, QuantizedMatrix, quantize_int8, quantize_nf4
from tests.backends.on_device import PLACES, kernels

CLOSE = 3e-7

FORMS = {
    "float32": lambda matrix: matrix,
    "float16": lambda matrix: matrix.astype(np.float16),
    "bfloat16": lambda matrix: matrix.astype(ml_dtypes.bfloat16),
    "int8": quantize_int8,
    "nf4": quantize_nf4,
    "nf4 double": lambda matrix: quantize_nf4(matrix, double_quant=True),
    "nf4 block 256": lambda matrix: quantize_nf4(matrix, block=256),
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module", params=PLACES)
def device(request):
    with kernels(request.param) as found:
        yield found


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(matrix):
    return np.asarray(matrix, np.float32).astype(np.float64)


def on(device, matrix):
    """A weight as the backend keeps it."""
    if isinstance(matrix, QuantizedMatrix):
        return device.products.prepared(matrix.map_arrays(device.cupy.asarray))
    return device.cupy.asarray(matrix)


def linear(device, x, weight, *more):
    return device.cupy.asnumpy(device.products.linear(device.cupy.asarray(x), weight, *more))


def worst(found, x, matrix, bias=0.0):
    """The largest error, relative to the magnitudes of what was added up."""
    x = x.astype(np.float64)
    exact, magnitude = x @ matrix.T + bias, np.abs(x) @ np.abs(matrix).T + np.abs(bias)
    assert found.dtype == np.float32
    assert found.shape == exact.shape
    return (np.abs(found - exact) / magnitude).max()


# --- a few rows ------------------------------------------------------------------------------------


@every_form
def test_few_rows(device, form):
    """Lengths of less than a chunk of a warp, of some chunks, and of a part of one more; outputs that fill no group."""
    for out, length in ((37, 512), (64, 96), (9, 2080), (1, 32), (3, 1056)):
        matrix, bias = FORMS[form](normal(out, length)), normal(out, seed=2)
        weight = on(device, matrix)
        for rows in (1, 2, 3, 8):
            x = normal(rows, length, seed=rows)
            assert worst(linear(device, x, weight), x, dense(matrix)) < CLOSE
            found = linear(device, x, weight, device.cupy.asarray(bias))
            assert worst(found, x, dense(matrix), bias) < CLOSE
            assert device.gpu is None or device.gpu.launches[-1].startswith("matvec<")


@every_form
def test_rows_that_begin_anywhere(device, form):
    """Lengths that are no multiple of anything, among them those where a block of NF4 goes on in the next row."""
    for out, length in ((5, 1091), (8, 6), (3, 1), (7, 333)):
        matrix, bias = FORMS[form](normal(out, length)), normal(out, seed=2)
        weight = on(device, matrix)
        for rows in (1, 4):
            x = normal(rows, length, seed=rows)
            found = linear(device, x, weight, device.cupy.asarray(bias))
            assert worst(found, x, dense(matrix), bias) < CLOSE
            assert device.gpu is None or device.gpu.launches[-1].startswith("matvec_unaligned<")


def test_memory_that_begins_anywhere(device):
    """Arrays that are parts of others: not at multiples of 16 bytes, not contiguous."""
    weight = device.cupy.asarray(normal(7 * 64 + 1).astype(np.float16))[1:].reshape(7, 64)
    x = device.cupy.asarray(normal(2, 65))
    for part in (x[:, 1:], x[:, :64], x.reshape(-1)[1:129].reshape(2, 64)):
        found = device.cupy.asnumpy(device.products.linear(part, weight))
        host = device.cupy.asnumpy(part)
        assert worst(found, host, device.cupy.asnumpy(weight).astype(np.float64)) < CLOSE
    aligned = on(device, normal(7, 64))
    for part in (x.reshape(-1)[1:129].reshape(2, 64), x[:, :64]):
        found = device.cupy.asnumpy(device.products.linear(part, aligned))
        assert worst(found, device.cupy.asnumpy(part), normal(7, 64).astype(np.float64)) < CLOSE
    strided = device.cupy.asarray(normal(7, 128).astype(np.float16))[:, ::2]
    host = device.cupy.asnumpy(strided).astype(np.float64)
    assert worst(linear(device, normal(1, 64), strided), normal(1, 64), host) < CLOSE


@pytest.mark.parametrize("form", ["bfloat16", "nf4"])
def test_rows_are_split_between_warps_or_not(device, form, monkeypatch):
    matrix = FORMS[form](normal(40, 2048))
    weight, x = on(device, matrix), normal(2, 2048, seed=1)
    found = []
    for processors in (1, 2, 132):
        monkeypatch.setattr(device.products, "multiprocessors", lambda n=processors: n)
        found.append(linear(device, x, weight))
        assert worst(found[-1], x, dense(matrix)) < CLOSE
    assert device.products._splits(10, 100) == 8
    assert device.products._splits(10, 3) == 4  # no more than there are steps
    assert device.products._splits(132 * 12, 100) == 1


@pytest.mark.parametrize("form", ["float32", "float16", "int8", "nf4"])
def test_the_order_in_which_threads_run_changes_no_bit(device, form):
    if device.gpu is None:
        pytest.skip("a GPU takes its own order")
    weight, x = on(device, FORMS[form](normal(21, 1120))), normal(2, 1120, seed=1)
    first = linear(device, x, weight)
    for order in (1, 2):
        device.gpu.order = order
        again = linear(device, x, weight)
        device.gpu.order = None
        np.testing.assert_array_equal(again, first)


def test_few_rows_round_nothing(device):
    matrix, x = normal(33, 64), normal(8, 64, seed=1)
    weight = on(device, matrix)
    for matmul_dtype in ("float16", "bfloat16", "tf32"):
        found = linear(device, x, weight, None, matmul_dtype)
        np.testing.assert_array_equal(found, linear(device, x, weight))


def test_leading_dimensions_and_no_rows(device):
    weight = on(device, normal(6, 32))
    x = normal(2, 3, 32, seed=1)
    found = linear(device, x, weight)
    assert worst(found.reshape(6, 6), x.reshape(6, 32), normal(6, 32).astype(np.float64)) < CLOSE
    assert linear(device, x[:0], weight).shape == (0, 3, 6)


def test_not_a_number_and_infinity_arrive(device):
    matrix, x = normal(5, 64), normal(2, 64, seed=1)
    matrix[1, 63], matrix[3, 0] = np.nan, np.inf
    found = linear(device, x, on(device, matrix))
    assert np.isnan(found[:, 1]).all()
    assert np.isinf(found[:, 3]).all()
    assert np.isfinite(found[:, [0, 2, 4]]).all()


@pytest.mark.parametrize("form", ["float16", "nf4"])
def test_before_tensor_cores(form):
    """Copies that pass the registers, and a smaller ring."""
    with kernels("on the CPU", compute_capability="70") as device:
        matrix, x = FORMS[form](normal(9, 2080)), normal(3, 2080, seed=1)
        assert worst(linear(device, x, on(device, matrix)), x, dense(matrix)) < CLOSE
        assert device.gpu.launches[-1].endswith(" 2>")


# --- many rows -------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("matmul_dtype", [None, "float16", "bfloat16"])
def test_many_rows(device, form, matmul_dtype):
    """Both factors are rounded to the dtype of the product, and nothing else is."""
    kept = np.float32 if matmul_dtype is None else to_dtype(matmul_dtype)
    for out, length in ((45, 96), (10, 33)):
        matrix, bias = FORMS[form](normal(out, length)), normal(out, seed=2)
        weight = on(device, matrix)
        rounded = np.asarray(matrix, np.float32).astype(kept).astype(np.float64)
        for rows in (9, 33):
            x = normal(rows, length, seed=rows)
            seen = x.astype(kept).astype(np.float64)
            found = linear(device, x, weight, None, matmul_dtype)
            assert worst(found, seen, rounded) < CLOSE
            found = linear(device, x.astype(kept), weight, device.cupy.asarray(bias), matmul_dtype)
            assert worst(found, seen, rounded, bias) < CLOSE


def test_tf32_only_where_it_is_asked_for(device):
    weight, x = on(device, normal(45, 96)), normal(33, 96, seed=1)
    exact = normal(45, 96).astype(np.float64)
    assert worst(linear(device, x, weight), x, exact) < CLOSE
    assert 1e-5 < worst(linear(device, x, weight, None, "tf32"), x, exact) < 1e-3


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_scratch_is_limited(device, form, monkeypatch):
    matrix, x, bias = FORMS[form](normal(50, 64)), normal(12, 64, seed=1), normal(50, seed=2)
    weight = on(device, matrix)
    whole = linear(device, x, weight, device.cupy.asarray(bias), "float16")
    monkeypatch.setattr(device.products, "SCRATCH", 16 * 64 * 2)
    before = 0 if device.gpu is None else len(device.gpu.products)
    parts = linear(device, x, weight, device.cupy.asarray(bias), "float16")
    assert np.abs(parts - whole).max() <= 1e-5  # another shape may have another order of sums
    assert device.gpu is None or len(device.gpu.products) == before + 4


def test_weights_of_the_products_dtype_are_read_where_they_are(device):
    if device.gpu is None:
        pytest.skip("launches are recorded on the CPU only")
    weight, x = on(device, FORMS["float16"](normal(50, 64))), normal(12, 64, seed=1)
    x = device.cupy.asarray(x.astype(np.float16))
    before = len(device.gpu.launches)
    device.products.linear(x, weight, None, "float16")
    assert device.gpu.launches[before:] == []


# --- conversions -----------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("to", ["float32", "float16", "bfloat16"])
def test_widened_rows_are_those_of_the_dense_matrix(device, form, to):
    for length in (96, 35):
        matrix = FORMS[form](normal(20, length))
        weight = on(device, matrix)
        place = device.cupy.empty((7, length), to_dtype(to))
        device.products.widen_rows(weight, 13, place)
        expected = np.asarray(matrix, np.float32)[13:].astype(to_dtype(to))
        np.testing.assert_array_equal(device.cupy.asnumpy(place), expected)


def test_nested_absmaxes_are_widened_once(device):
    matrix = quantize_nf4(normal(16, 64), double_quant=True)
    plain = matrix.map_arrays(device.cupy.asarray)
    ready = device.products.prepared(plain)
    assert device.products.prepared_bytes(plain) == ready.nbytes - plain.nbytes == 4 * 16
    assert device.products.prepared(ready) is ready
    np.testing.assert_array_equal(device.cupy.asnumpy(ready.scales), matrix.absmax.values())
    x = normal(2, 64, seed=1)
    np.testing.assert_array_equal(linear(device, x, ready), linear(device, x, plain))
    back = ready.map_arrays(device.cupy.asnumpy)
    assert type(back) is NF4Matrix
    np.testing.assert_array_equal(back.absmax.absmax, matrix.absmax.absmax)
    np.testing.assert_array_equal(dense(back), dense(matrix))


def test_other_matrices_need_no_preparation(device):
    for form in ("int8", "nf4"):
        weight = FORMS[form](normal(8, 64)).map_arrays(device.cupy.asarray)
        assert device.products.prepared(weight) is weight
        assert device.products.prepared_bytes(weight) == 0
