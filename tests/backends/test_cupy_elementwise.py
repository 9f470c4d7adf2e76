"""What the cupy backend computes between the matrix products, against the definitions in float64.

Tolerances are relative to the largest number of the result; what was seen with the kernels on the CPU stands beside
each. Results in 16 bits have to be the rounded float32 results, to the bit.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from refimpl.backends import get_backend, to_dtype
from refimpl.backends.activations import ACTIVATIONS
from refimpl.backends.likeliest import likeliest
from refimpl.backends.quantized import QuantizedMatrix
from tests.backends.on_device import PLACES, kernels
from tests.backends.test_cupy_products import FORMS, every_form, normal, on

TYPES = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module", params=PLACES)
def device(request):
    with kernels(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def exact():
    """The definitions."""
    return get_backend("numpy", dtype="float64")


def wide(*arrays):
    return (array.astype(np.float64) for array in arrays)


def largest_error(found, expected):
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


# --- layer norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 96), (1, 130), (70, 132), (1, 6144), (2, 1), (1, 33000)])
def test_layer_norm(device, exact, shape):
    """The numbers lie far from zero, where a variance by sums of squares would be lost.  Seen: 6e-7."""
    x, weight, bias = normal(*shape) + 10, normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    given = [device.cupy.asarray(array) for array in (x, weight, bias)]
    found = device.cupy.asnumpy(device.elementwise.layer_norm(*given, 1e-5))
    assert found.dtype == np.float32
    assert largest_error(found, exact.layer_norm(*wide(x, weight, bias), 1e-5)) < 4e-6


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_layer_norm_in_16_bits(device, dtype):
    for hidden in (96, 130):
        given = [device.cupy.asarray(a) for a in (normal(5, hidden), normal(hidden), normal(hidden, seed=2))]
        full = device.cupy.asnumpy(device.elementwise.layer_norm(*given, 1e-5))
        found = device.elementwise.layer_norm(*given, 1e-5, to_dtype(dtype))
        np.testing.assert_array_equal(device.cupy.asnumpy(found), full.astype(to_dtype(dtype)))


def test_layer_norm_of_constant_rows_and_of_none(device):
    ones = device.cupy.asarray(np.ones(64, np.float32))
    x = device.cupy.asarray(np.full((2, 64), 3, np.float32))
    found = device.cupy.asnumpy(device.elementwise.layer_norm(x, ones, ones, 1e-5))
    np.testing.assert_array_equal(found, 1)
    assert device.elementwise.layer_norm(x[:0], ones, ones, 1e-5).shape == (0, 64)


# --- activations -----------------------------------------------------------------------------------


def test_all_activations_have_a_kernel_but_those_that_learn(device):
    assert set(ACTIVATIONS) - set(device.elementwise.ACTIVATIONS) == {"prelu", "xielu"}


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"prelu", "xielu"}))
def test_activation(device, exact, name):
    """Seen: 1.3e-7, absolute where the result is below 1, and relative above."""
    x = normal(3, 401) * 4
    x[0, :8] = 0, -0.0, -20, 30, 1e-30, 3, -3, 6
    found = device.cupy.asnumpy(device.elementwise.activation(device.cupy.asarray(x), name))
    expected = exact.activation(x.astype(np.float64), name)
    assert found.shape == x.shape
    assert found.dtype == np.float32
    assert (np.abs(found - expected) / np.maximum(1, np.abs(expected))).max() < 5e-7


@pytest.mark.parametrize(
    "name", ["gelu", "gelu_new", "relu", "relu6", "silu", "mish", "quick_gelu", "gelu_10"]
)
def test_activations_of_what_is_no_number(device, exact, name):
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    found = device.cupy.asnumpy(device.elementwise.activation(device.cupy.asarray(x), name))
    with np.errstate(all="ignore"):
        expected = exact.activation(x.astype(np.float64), name)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_negative_tails_of_gelu_keep_their_digits(device, exact):
    """0.5 x (1 + erf) would be zero from -5.5 on.  Seen: 1e-5 at -12, from the rounding of x / sqrt(2)."""
    x = np.linspace(-12, -2, 101, dtype=np.float32)
    found = device.cupy.asnumpy(device.elementwise.activation(device.cupy.asarray(x), "gelu"))
    np.testing.assert_allclose(found, exact.activation(x.astype(np.float64), "gelu"), rtol=3e-5)


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_activation_in_16_bits_and_of_any_length(device, dtype):
    whole = device.cupy.asarray(normal(1030))
    for part in (whole, whole[1:], whole[:3], whole[::2]):
        full = device.cupy.asnumpy(device.elementwise.activation(part, "silu"))
        found = device.elementwise.activation(part, "silu", to_dtype(dtype))
        np.testing.assert_array_equal(device.cupy.asnumpy(found), full.astype(to_dtype(dtype)))
    assert device.elementwise.activation(whole[:0], "silu", to_dtype(dtype)).shape == (0,)


# --- rotary embedding ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head_dim", "half", "angles"), [(16, 2, 1), (16, 8, 2), (10, 3, 2), (80, 10, 1), (7, 1, 1)]
)
def test_rotary_of_a_part_of_the_fused_projection(device, exact, head_dim, half, angles):
    """Seen: 6e-8."""
    batch, heads, seq = 2, 3, 5
    fused = normal(batch, seq, heads, 3 * head_dim)
    angle = normal(angles, seq, half, seed=1)
    cos, sin = np.cos(angle), np.sin(angle)
    for part in (0, 1):
        columns = slice(part * head_dim, (part + 1) * head_dim)
        view = device.cupy.asarray(fused)[..., columns].transpose(0, 2, 1, 3)
        found = device.elementwise.rotary(view, device.cupy.asarray(cos), device.cupy.asarray(sin))
        assert found.flags.c_contiguous
        x = fused[..., columns].transpose(0, 2, 1, 3)
        assert largest_error(device.cupy.asnumpy(found), exact.rotary(*wide(x, cos, sin))) < 4e-7


@pytest.mark.parametrize("given", TYPES)
def test_rotary_in_16_bits(device, given):
    x = normal(1, 2, 3, 16).astype(to_dtype(given))
    angle = normal(1, 3, 4, seed=1)
    given = [device.cupy.asarray(array) for array in (x, np.cos(angle), np.sin(angle))]
    full = device.cupy.asnumpy(device.elementwise.rotary(*given))
    found = device.cupy.asnumpy(device.elementwise.rotary(*given, to_dtype("float16")))
    np.testing.assert_array_equal(found, full.astype(np.float16))
    np.testing.assert_array_equal(full[..., 8:], x[..., 8:].astype(np.float32))  # beyond rotary_dim


# --- embedding -------------------------------------------------------------------------------------


@every_form
def test_embedding_is_exact(device, form):
    for hidden in (96, 33):
        matrix = FORMS[form](normal(50, hidden))
        ids = np.array([[0, 49, 7], [7, 13, 1]])
        found = device.elementwise.embedding(device.cupy.asarray(ids), on(device, matrix))
        dense = np.asarray(matrix, np.float32)
        np.testing.assert_array_equal(device.cupy.asnumpy(found), dense[ids])
        assert isinstance(matrix, QuantizedMatrix) or found.dtype == np.float32


@pytest.mark.parametrize("form", ["float32", "nf4"])
def test_ids_that_there_are_not_give_nan(device, form):
    matrix = FORMS[form](normal(50, 64))
    ids = np.array([3, 50, -1, 1 << 40, -(1 << 40), 4])
    found = device.cupy.asnumpy(device.elementwise.embedding(device.cupy.asarray(ids), on(device, matrix)))
    assert np.isnan(found[1:5]).all()
    np.testing.assert_array_equal(found[[0, 5]], np.asarray(matrix, np.float32)[[3, 4]])


# --- the cache -------------------------------------------------------------------------------------


def store(device, key, value, kept, at, capacity=9):
    """Storage of sevens, after new keys and values have been written into a part of it."""
    cp = device.cupy
    batch, heads, _, head_dim = key.shape
    sevens = [cp.asarray(np.full((batch + 1, heads, capacity + 4, head_dim), 7, kept)) for _ in range(2)]
    device.elementwise.store(*(whole[:batch, :, 2 : 2 + capacity] for whole in sevens), key, value, at)
    return [cp.asnumpy(whole) for whole in sevens]


@pytest.mark.parametrize(
    ("keys", "values", "kept"),
    [("float32", "float32", "float32"), ("float16", "float32", "float16"), ("bfloat16", "float32", "bfloat16"),
     ("float32", "float16", "bfloat16")],
)  # fmt: skip
def test_storing_new_keys_and_values(device, keys, values, kept):
    """The value is a view into the fused projection; what is not theirs stays as it was."""
    cp, kept = device.cupy, to_dtype(kept)
    key = normal(2, 3, 4, 10).astype(to_dtype(keys))
    fused = normal(2, 4, 3, 30, seed=1).astype(to_dtype(values))
    value = fused[..., 20:].transpose(0, 2, 1, 3)
    view = cp.asarray(fused)[..., 20:].transpose(0, 2, 1, 3)
    for at in (0, 5, cp.asarray(np.array([3]))):
        place = 2 + int(at[0] if isinstance(at, cp.ndarray) else at)
        for array, found in zip((key, value), store(device, cp.asarray(key), view, kept, at), strict=True):
            expected = np.full_like(found, 7)
            expected[:2, :, place : place + 4] = array.astype(np.float32).astype(kept)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("at", [7, 9, 1 << 31, -3])
@pytest.mark.parametrize("on_device", [False, True])
def test_nothing_is_stored_outside(device, at, on_device):
    cp = device.cupy
    key, value = normal(2, 3, 4, 8), normal(2, 3, 4, 8, seed=1)
    place = cp.asarray(np.array([at])) if on_device else at
    found = store(device, cp.asarray(key), cp.asarray(value), np.float32, place)
    for array, whole in zip((key, value), found, strict=True):
        expected = np.full_like(whole, 7)
        for new in range(4):
            if 0 <= at + new < 9:
                expected[:2, :, 2 + at + new] = array[:, :, new]
        np.testing.assert_array_equal(whole, expected)


# --- looking for one number ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [1, 31, 1000, 5003])
def test_the_likeliest(device, dtype, count):
    """As the definition: the first of equal numbers, and -1 where the largest is none."""
    x = np.round(normal(6, count) * 4).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x[1] = -np.inf
    x[2, count // 2 :: 2] = np.nan
    x[2, 0] = np.inf
    x[3] = 0
    x[3, ::2] = -0.0
    x[4, [0, -1]] = np.inf
    found = device.elementwise.likeliest(device.cupy.asarray(x))
    assert found.dtype == np.int64
    found = device.cupy.asnumpy(found)
    np.testing.assert_array_equal(found, likeliest(np, x.astype(np.float32)))
    assert found[1:].tolist() == [-1, -1, 0, -1, *x[5:].astype(np.float32).argmax(axis=-1)]


def test_the_likeliest_of_the_last_position(device):
    """A view [batch, vocab] of logits [batch, seq, vocab]."""
    x = normal(3, 4, 70)
    logits = device.cupy.asarray(x)
    np.testing.assert_array_equal(
        device.cupy.asnumpy(device.elementwise.likeliest(logits[:, -1])), x[:, -1].argmax(-1)
    )
    np.testing.assert_array_equal(device.cupy.asnumpy(device.elementwise.likeliest(logits)), x.argmax(-1))


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_that_are_not_finite_are_found(device, dtype):
    x = normal(37, 101).astype(to_dtype(dtype))
    assert not device.elementwise.holds_nonfinite(device.cupy.asarray(x))
    x[0, 0] = np.finfo(np.float16).max  # large, and finite in every type
    assert not device.elementwise.holds_nonfinite(device.cupy.asarray(x))
    for value in (np.nan, np.inf, -np.inf):
        wrong = x.copy()
        wrong[36, 100] = value
        assert device.elementwise.holds_nonfinite(device.cupy.asarray(wrong))
    assert not device.elementwise.holds_nonfinite(device.cupy.asarray(x[:0]))
